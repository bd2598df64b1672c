"""Pictures of every kind, whole and damaged, from a folder; and images from .npz files."""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, TINY, environment, run
from PIL import Image
from test_data import flat, settings

from sintrovae_jax.data import folder, images, pipeline, sources
from sintrovae_jax.data.images import Format
from sintrovae_jax.errors import UserError
from sintrovae_jax.parallel import Shard

FORM = Format(16, 3)
WHITE, RED, GREEN, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)
UNTOLD = 2**30  # bytes of memory


def solid(colour, width=16, height=16):
    return np.tile(np.array(colour, np.uint8), (height, width, 1))


def halves(left, right, height=16):
    return np.concatenate([solid(left, 8, height), solid(right, 8, height)], axis=1)


def quadrants():
    return np.concatenate([halves(RED, GREEN, 8), halves(BLUE, WHITE, 8)])


def grey(x):
    return np.repeat(np.asarray(x, np.uint8)[:, :, None], 3, axis=2)


def by_pillow(picture, **options):
    """What writes this array or image to a path."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return lambda path: picture.save(path, **options)


def raw_png(bits, kind, width, height, rows=b""):
    """A PNG written without Pillow, which cannot write all of them. kind: 0 grey, 2 RGB, 6 RGBA."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    chunks = [
        struct.pack(">I", len(b)) + t + b + struct.pack(">I", zlib.crc32(t + b)) for t, b in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def deep_png(*samples):
    """16 bits a channel, all pixels alike."""
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples) * 16
    content = raw_png(16, {3: 2, 4: 6}[len(samples)], 16, 16, row * 16)
    return lambda path: path.write_bytes(content)


def palette_png():
    picture = Image.fromarray(halves([0], [1])[:, :, 0], "P")
    picture.putpalette([*RED, *GREEN])
    return by_pillow(picture, transparency=1)


def turned(**options):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90° clockwise
    return by_pillow(quadrants(), exif=exif, **options)


def red_then_blue():
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    return lambda path: frames[0].save(path, save_all=True, append_images=frames[1:])


RAMP = np.arange(256).reshape(16, 16)
# name: what writes it, the RGB pixels it should give on white, and how far off they may be
GOOD = {
    "grey.png": (by_pillow(RAMP.astype(np.uint8)), grey(RAMP), 0),
    "palette.png": (palette_png(), halves(RED, WHITE), 0),
    "cmyk.jpg": (by_pillow(Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")), solid((200, 100, 50)), 4),
    "rgba.png": (by_pillow(solid((200, 100, 0, 102))), solid((233, 193, 153)), 1),  # 0.4 of it, 0.6 of white
    "la.png": (by_pillow(Image.new("LA", (16, 16), (100, 51))), solid((224, 224, 224)), 1),  # 0.2 of it
    "deep.png": (by_pillow((RAMP * 257).astype(np.uint16)), grey(RAMP), 0),
    "deep_rgb.png": (deep_png(32768, 65535, 0), solid((128, 255, 0)), 1),
    "deep_rgba.png": (deep_png(65535, 0, 0, 32768), solid((255, 127, 127)), 1),
    "turned.jpg": (turned(quality=95, subsampling=0), np.rot90(quadrants(), -1), 30),
    "moving.gif": (red_then_blue(), solid(RED), 0),
    "pages.tif": (red_then_blue(), solid(RED), 0),
    "turned.tiff": (turned(compression="tiff_lzw"), np.rot90(quadrants(), -1), 0),
    "deep.tif": (by_pillow((RAMP * 257).astype(np.uint16)), grey(RAMP), 0),
    "floats.tif": (by_pillow((RAMP / 255).astype(np.float32)), grey(RAMP), 0),
    "cmyk.tif": (by_pillow(Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")), solid((200, 100, 50)), 1),
    "rgba.tif": (by_pillow(solid((200, 100, 0, 102))), solid((233, 193, 153)), 1),
    "plain.jfif": (by_pillow(solid((90, 80, 70)), format="JPEG"), solid((90, 80, 70)), 1),
    "plain.jpe": (by_pillow(solid((90, 80, 70)), format="JPEG"), solid((90, 80, 70)), 1),
    "pixels.ppm": (by_pillow(quadrants()), quadrants(), 0),
    "deep.pgm": (by_pillow((RAMP * 257).astype(np.uint16)), grey(RAMP), 0),
    "web.webp": (by_pillow(quadrants(), lossless=True), quadrants(), 0),
    "bits.bmp": (by_pillow(quadrants()), quadrants(), 0),
    "one_bit.png": (by_pillow(halves([0], [255])[:, :, 0] > 0), halves((0, 0, 0), WHITE), 0),
    "dot.png": (by_pillow(solid((10, 20, 30), 1, 1)), solid((10, 20, 30)), 0),
    "huge.jpg": (by_pillow(Image.new("L", (8000, 6000), 77), quality=10), grey(np.full((16, 16), 77)), 4),
    "below/deeper/nested.png": (by_pillow(solid((1, 2, 3))), solid((1, 2, 3)), 0),
    "日本 é.png": (by_pillow(solid((4, 5, 6))), solid((4, 5, 6)), 0),
    "UPPER.JPG": (by_pillow(solid((90, 90, 90))), solid((90, 90, 90)), 1),
}
if images.features.check("avif"):
    GOOD["new.avif"] = (by_pillow(solid((200, 100, 50)), quality=100), solid((200, 100, 50)), 4)
    GOOD["turned.avif"] = (turned(quality=100, subsampling="4:4:4"), np.rot90(quadrants(), -1), 40)
CUT = {"cut.jpg", "cut.png", "dark.tif", "wide.tif"}  # they begin as pictures do
BAD = CUT | {"text.png", "empty.png", "bomb.png", "loop.png", "broken.jpg", "script.png", "pipe.png"}
UNREAD = {".heic": 2, ".svg": 1, "without a suffix": 1}
NO_PICTURES = ["._grey.png", ".DS_Store", "Thumbs.db", "notes.txt", "LICENSE"]
# PostScript, which Pillow would have Ghostscript run.
SCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def write(path, writer):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer(path)


def write_cut(path):
    """A picture of noise of which half the bytes are missing."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A folder of everything that a folder of pictures may hold."""
    place = tmp_path_factory.mktemp("hostile")
    for name, (writer, _, _) in GOOD.items():
        write(place / name, writer)
    for name in CUT:
        write_cut(place / name)
    by_pillow((RAMP * 1000).astype(np.float32))(place / "dark.tif")
    by_pillow((RAMP * 2**20).astype(np.int32))(place / "wide.tif")
    (place / "script.png").write_bytes(SCRIPT)
    os.mkfifo(place / "pipe.png")
    for name in (*NO_PICTURES, "a.heic", "below/B.HEIC", "c.svg"):
        (place / name).write_text("no picture that can be read")
    by_pillow(quadrants())(place / "d.png")
    (place / "d.png").rename(place / "d")
    (place / "text.png").write_text("not a picture")
    (place / "empty.png").touch()
    (place / "bomb.png").write_bytes(raw_png(8, 2, 60_000, 60_000))
    (place / "loop.png").symlink_to("loop.png")
    (place / "broken.jpg").symlink_to("nowhere.jpg")
    (place / "below" / "up").symlink_to("..")  # a folder in itself
    return place


def numbered_folder(place, count, bad=()):
    """Pictures of which each is all one grey, its number."""
    for i in range(count):
        write(place / f"{i:03}.png", by_pillow(np.full((4, 4), i, np.uint8)))
    for i in bad:
        write_cut(place / f"{i:03}.png")
    return place


def stream(source, batch_size=4, start=0, stop=12, seed=3, devices=1, process=0, processes=1, substeps=1):
    """[steps, examples of this process, ...]"""
    per_device = batch_size // devices // processes
    shard = Shard(batch_size, process * devices * per_device, devices, per_device)
    values = settings("folder:", image_size=16)
    return flat(
        list(pipeline.batches(source, values, seed=seed, start=start, stop=stop, substeps=substeps, shard=shard))
    )


def one_line(call, *args) -> str:
    """The one line of the `UserError` that a call ends with."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# One picture


@pytest.mark.parametrize("name", GOOD)
def test_a_picture_is_read_right(hostile, name):
    _, wanted, tolerance = GOOD[name]
    got = images.decode((hostile / name).read_bytes(), FORM)
    assert got.dtype == np.uint8
    np.testing.assert_allclose(got.astype(int), wanted.astype(int), atol=tolerance)


def some_jpeg(rng) -> bytes:
    """Of any size, smooth in places and noisy in others; one of four is damaged somewhere."""
    width, height = (int(side) for side in rng.integers(1, rng.choice([20, 700]), 2))
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height))
    pixels = np.asarray(coarse) + rng.normal(0, 20, (height, width, 3)) * (np.arange(width) % 64 < 20)[:, None]
    mode = rng.choice(["RGB", "RGB", "L", "CMYK"])
    options = {"quality": int(rng.integers(5, 100)), "progressive": bool(rng.integers(2))}
    options |= {"subsampling": int(rng.integers(3))} if mode == "RGB" else {}
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(str(mode)).save(file, "JPEG", **options)
    encoded = bytearray(file.getvalue())
    damage = rng.integers(8)
    if damage == 0:
        del encoded[rng.integers(100, len(encoded)) :]
    if damage == 1:
        encoded[rng.integers(2, len(encoded))] = rng.integers(256)
    return bytes(encoded)


def decoded(encoded, form):
    try:
        return images.decode(encoded, form).tolist()
    except ValueError as error:
        return str(error)


@pytest.mark.soak
def test_a_jpeg_is_read_as_pillow_reads_it(monkeypatch):
    rng = np.random.default_rng(0)
    jpegs = [some_jpeg(rng) for _ in range(120)]
    forms = [Format(int(rng.choice([1, 16, 64, 200])), int(rng.choice([1, 3])), bool(rng.integers(2))) for _ in jpegs]
    faster, quick = [], images._plain_jpeg
    monkeypatch.setattr(images, "_plain_jpeg", lambda *args: [faster.append(quick(*args)), faster[-1]][1])
    got = [decoded(*both) for both in zip(jpegs, forms, strict=True)]
    assert 60 < sum(x is not None for x in faster) < 115
    monkeypatch.setattr(images, "_plain_jpeg", lambda encoded, picture: None)
    wanted = [decoded(*both) for both in zip(jpegs, forms, strict=True)]
    assert [g == w for g, w in zip(got, wanted, strict=True)] == [True] * 120
    assert 5 < sum(isinstance(w, str) for w in wanted) < 40


@pytest.mark.parametrize("name", GOOD)
def test_a_picture_is_read_right_as_grey(hostile, name):
    _, wanted, tolerance = GOOD[name]
    luma = wanted @ np.array([[0.299], [0.587], [0.114]])
    got = images.decode((hostile / name).read_bytes(), Format(16, 1))
    assert got.shape == (16, 16, 1)
    np.testing.assert_allclose(got.astype(float), luma, atol=tolerance + 1)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("palette.png", halves(RED, (0, 50, 100))),
        ("rgba.png", solid((80, 70, 60))),  # 0.4 of (200, 100, 0), 0.6 of the background
        ("la.png", solid((20, 60, 100))),  # 0.2 of 100, 0.8 of the background
        ("deep_rgba.png", solid((128, 25, 50))),
        ("bits.bmp", quadrants()),
    ],
)
def test_what_is_transparent_lies_on_the_background(hostile, name, wanted):
    got = images.decode((hostile / name).read_bytes(), Format(16, 3, background=(0, 50, 100)))
    np.testing.assert_allclose(got.astype(int), wanted.astype(int), atol=1)


def test_the_background_of_a_grey_format_is_its_grey(hostile):
    form = Format(16, 1, background=(0, 50, 100))  # of luma 40.75
    assert form.fill == (41,)
    got = images.decode((hostile / "palette.png").read_bytes(), form)
    np.testing.assert_allclose(got[:, :, 0].astype(int), halves([76], [41])[:, :, 0], atol=1)


def thirds(scale):
    """Red, green and blue beside each other, three times as wide as high."""
    return np.concatenate([solid(c, 16 * scale, 16 * scale) for c in (RED, GREEN, BLUE)], axis=1)


@pytest.mark.parametrize("scale", [1, 5])
@pytest.mark.parametrize("upright", [False, True])
def test_crop_takes_the_middle_square_and_no_crop_squeezes(scale, upright):
    def fit(crop):
        picture = np.rot90(thirds(scale), -1) if upright else thirds(scale)
        out = images.fit(Image.fromarray(np.ascontiguousarray(picture)), Format(16, 3, crop))
        return np.rot90(out) if upright else out

    np.testing.assert_array_equal(fit(True)[:, 2:-2], solid(GREEN, 12))
    squeezed = fit(False)
    for colour, columns in ((RED, slice(0, 3)), (GREEN, slice(7, 9)), (BLUE, slice(13, 16))):
        part = squeezed[:, columns]
        np.testing.assert_allclose(part.astype(int), np.broadcast_to(colour, part.shape), atol=4)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_downsizing_is_antialiased(suffix):
    """A checkerboard of single pixels is grey from afar; picking pixels would make it black, white or moiré."""
    board = (255 * (np.indices((256, 256)).sum(0) % 2)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(board).save(file, {"png": "PNG", "jpg": "JPEG"}[suffix])
    small = images.decode(file.getvalue(), Format(32, 1))
    np.testing.assert_allclose(small.astype(int), 127, atol=3)


def test_a_large_jpeg_becomes_what_its_pixels_average_to():
    rows, columns = np.mgrid[:512, :512]
    x = np.stack([rows // 2, columns // 2, 127 + 100 * np.sin(rows / 80)], 2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=95)
    small = images.decode(file.getvalue(), FORM)
    means = x.reshape(16, 32, 16, 32, 3).mean((1, 3))
    np.testing.assert_allclose(small[1:-1, 1:-1].astype(float), means[1:-1, 1:-1], atol=3)


@pytest.mark.parametrize("name", sorted(BAD - {"loop.png", "broken.jpg", "pipe.png"}))
def test_what_is_no_whole_picture_is_a_value_error(hostile, name):
    with pytest.raises(ValueError, match=r"."):
        images.decode((hostile / name).read_bytes(), FORM)


# A folder


def test_in_memory_every_good_picture_is_there_and_the_bad_ones_are_named(hostile):
    source = folder.build(str(hostile), FORM, 0.2, UNTOLD)
    assert isinstance(source, sources.Arrays)
    assert set(source.skipped) == BAD
    assert all(source.skipped.values())
    held_out = source.test(100, seed=0)
    assert 0 < len(held_out) < len(GOOD)
    got = [*np.asarray(source._train), *(255 * held_out).round().astype(np.uint8)]
    wanted = [images.decode((hostile / name).read_bytes(), FORM) for name in GOOD]
    assert sorted(x.tobytes() for x in got) == sorted(x.tobytes() for x in wanted)


def test_as_training_goes_every_good_picture_is_there_and_the_bad_ones_are_named(hostile):
    source = folder.build(str(hostile), FORM, 0.2, 1)
    assert isinstance(source, folder.Files)
    assert set(source.skipped) == BAD - CUT
    batches = stream(source)  # more than an epoch
    got = [*batches.reshape(-1, 16, 16, 3), *(255 * source.test(100, seed=0)).round().astype(np.uint8)]
    wanted = [images.decode((hostile / name).read_bytes(), FORM) for name in GOOD]
    assert {x.tobytes() for x in got} == {x.tobytes() for x in wanted}
    assert set(source.skipped) == BAD


@pytest.mark.parametrize("room", [1, 40 * 8 * 8 * 3])  # for none of the sizes; for 8 pixels, but not 16
def test_a_folder_at_a_smaller_size_is_averaged_down(hostile, room):
    source = folder.build(str(hostile), FORM, 0.2, room)
    assert isinstance(source, folder.Files)
    assert source.at(16) is source
    wanted = np.stack([images.decode((hostile / name).read_bytes(), FORM) for name in GOOD]).astype(float)
    for size in (8, 4):
        smaller, factor = source.at(size), 16 // size
        batches = stream(smaller)  # more than an epoch
        assert batches.dtype == np.uint8
        got = np.concatenate([batches.reshape(-1, size, size, 3), 255 * smaller.test(100, seed=0)])
        means = wanted.reshape(-1, size, factor, size, factor, 3).mean((2, 4))
        apart = np.abs(means[:, None] - got).max((2, 3, 4))
        rounded = 0.501 if room == 1 else 1.001  # once, or at 8 pixels and again
        assert apart.min(0).max() <= rounded, "one that is no picture's average"
        assert apart.min(1).max() <= rounded, "a picture is missing"
        np.testing.assert_array_equal(batches[5:], stream(source.at(size), start=5))
    assert set(source.skipped) == BAD


def test_a_folder_gives_the_same_batches_whatever_shares_them_and_wherever_they_start(hostile):
    def again(**kwargs):
        return stream(source, stop=8, **kwargs)

    source = folder.build(str(hostile), FORM, 0.2, 1)
    whole = again()
    assert whole.shape == (8, 4, 16, 16, 3)
    source = folder.build(str(hostile), FORM, 0.2, 1)
    np.testing.assert_array_equal(whole, again(devices=4, substeps=4))
    np.testing.assert_array_equal(whole[5:], again(start=5))
    np.testing.assert_array_equal(whole[3:6], again(start=3, substeps=3)[:3])
    two = [again(devices=2, process=p, processes=2) for p in range(2)]
    np.testing.assert_array_equal(whole, np.concatenate(two, axis=1))
    assert (whole != again(seed=4)).any()


def test_a_folder_is_read_the_same_through_tensorflows_file_systems(tmp_path):
    place = str(numbered_folder(tmp_path, 40, bad=(7, 8, 30)))
    local, remote = (folder.build(where, Format(4, 1), 0.2, 1) for where in (place, f"file://{place}"))
    np.testing.assert_array_equal(stream(remote), stream(local))
    np.testing.assert_array_equal(remote.test(40, 0), local.test(40, 0))
    assert set(remote.skipped) == set(local.skipped) == {"007.png", "008.png", "030.png"}


def test_a_folder_may_be_relative_to_where_python_was(tmp_path, monkeypatch):
    numbered_folder(tmp_path / "here", 12)
    with monkeypatch.context() as there:
        there.chdir(tmp_path)
        source = folder.build("here", Format(4, 1), 0.2, 1)
    assert len(stream(source)) == 12
    assert source.fingerprint == folder.build(str(tmp_path / "here"), Format(4, 1), 0.2, 1).fingerprint
    assert not source.skipped


def test_processes_that_are_killed_as_training_goes_change_nothing(tmp_path, started):
    source = folder.build(str(numbered_folder(tmp_path, 40)), Format(4, 1), 0.2, 1)
    shard, options = Shard(4, 0, 1, 4), {"seed": 3, "start": 0, "substeps": 2}
    batches = pipeline.batches(source, settings("folder:", image_size=4), stop=60, shard=shard, **options)
    got = []
    for i, batch in enumerate(batches):
        got.append(batch)
        if i % 10 == 5:
            started[-1].kill()
    np.testing.assert_array_equal(flat(got), stream(source, stop=60, substeps=2))
    assert len(started) > 2
    assert not source.skipped


_LEFT = """
import sys
from sintrovae_jax.data import pipeline
from sintrovae_jax.parallel import Shard
from sintrovae_jax.presets import images
values = images.faces(f"folder:{sys.argv[1]}", size=16).data
values.memory_gib = 0.0
options = {"seed": 0, "start": 0, "stop": 100_000, "substeps": 5, "shard": Shard(8, 0, 1, 8)}
batches = pipeline.batches(pipeline.build(values), values, **options)
print(next(batches)["x"].shape)
"""


@pytest.mark.soak
def test_python_ends_though_a_stream_has_not(hostile):
    command = [sys.executable, "-c", _LEFT, str(hostile)]
    ended = subprocess.run(command, check=False, env=environment(), capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (0, "(1, 5, 8, 16, 16, 3)\n"), ended.stderr


def test_a_damaged_file_is_replaced_by_the_next_one_and_moves_no_other(tmp_path):
    def fill(bad):
        def read(names, x):
            x[:] = np.array([int(name) for name in names])[:, None, None, None]
            return {i: "damaged" for i, name in enumerate(names) if name in bad}

        return read

    sound, damaged = (
        folder.Files(fill(bad), list("012345678"), ["9"], Format(2, 1), {}, at_once=2, look=len) for bad in ("", "27")
    )
    wanted, got = (stream(s, batch_size=3)[..., 0, 0, 0] for s in (sound, damaged))
    for epoch in wanted.reshape(-1, 9):
        assert sorted(epoch) == list(range(9))
    np.testing.assert_array_equal(got, wanted + np.isin(wanted, [2, 7]))
    assert damaged.skipped == {"2": "damaged", "7": "damaged"}


def test_in_memory_and_not_the_same_names_are_held_out(tmp_path):
    place = str(numbered_folder(tmp_path, 40))
    memory, files = (folder.build(place, Format(4, 1), 0.25, room) for room in (UNTOLD, 1))
    np.testing.assert_array_equal(memory.test(100, 0), files.test(100, 0))
    assert 3 <= len(memory.test(100, 0)) <= 20
    assert len(memory.test(2, 0)) == 2
    assert memory.test(1, 0).dtype == np.float32
    assert memory.test(100, 0).max() <= 39 / 255
    held_out = {int(x) for x in (255 * memory.test(100, 0)[:, 0, 0, 0]).round()}
    assert set(stream(files, stop=40).ravel()) == set(range(40)) - held_out


def test_a_folder_of_nothing_but_damaged_files_is_one_line(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_text("not a picture")
    for room in (UNTOLD, 1):
        assert "not one of 2 files" in one_line(folder.build, str(tmp_path), FORM, 0.1, room)


def test_a_folder_of_nothing_but_truncated_files_is_one_line(tmp_path):
    """They begin as pictures do, so a look at how they begin is not enough."""
    place = str(numbered_folder(tmp_path, 5, bad=range(5)))
    for room in (UNTOLD, 1):
        assert "not one of 5 files" in one_line(folder.build, place, FORM, 0.1, room)


def test_truncated_files_never_leave_training_or_testing_without_a_picture(tmp_path):
    """Which of three is held out is not known here, so each in turn is the only sound one."""
    for sound in range(3):
        place = numbered_folder(tmp_path / str(sound), 3, bad={0, 1, 2} - {sound})
        source = folder.build(str(place), Format(4, 1), 0.1, 1)
        assert (source.test(5, 0) * 255).round().ravel().tolist() == [sound] * 16
        assert (stream(source, stop=2) == sound).all()


def test_pictures_that_are_not_read_are_counted_by_their_kinds_in_one_line(hostile, caplog):
    folder.listing(str(hostile))
    (line,) = caplog.messages
    for kind, count in UNREAD.items():
        assert f"{count} {kind}" in line
    assert not [name for name in NO_PICTURES if name in line or name.rpartition(".")[2] in line.partition("(")[0]]


def test_a_folder_of_kinds_that_are_not_read_alone_says_so(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.HEIC").write_bytes(b"new")
    assert "has no pictures (.png, " in one_line(folder.listing, str(tmp_path))
    assert one_line(folder.listing, str(tmp_path)).endswith("; not read: 3 .heic")


@pytest.mark.parametrize("room", [UNTOLD, 1])
def test_the_largest_picture_is_a_key(tmp_path, caplog, room):
    place = numbered_folder(tmp_path, 3)
    by_pillow(np.zeros((20, 10), np.uint8))(place / "large.png")
    assert not folder.build(str(place), Format(4, 1), 0.1, room).skipped
    source = folder.build(str(place), Format(4, 1, max_pixels=199), 0.1, room)
    assert source.skipped == {"large.png": "10 × 20 pixels, more than data.max_pixels=199"}
    assert "skipped 1 of 4 pictures: large.png (10 × 20 pixels, more than data.max_pixels=199)" in caplog.text
    assert images.read_format(settings("folder:", image_size=4)).max_pixels == Format(4, 1).max_pixels


def test_reasons_say_what_is_wrong(hostile):
    skipped = folder.build(str(hostile), FORM, 0.2, UNTOLD).skipped
    assert skipped["bomb.png"] == "60000 × 60000 pixels, more than data.max_pixels=178956970"
    assert skipped["script.png"] == "not a picture"
    assert skipped["dark.tif"] == "its numbers are from 0.0 to 255000.0, not from 0 to 1"
    assert skipped["wide.tif"] == "its numbers are from 0 to 267386880, not from 0 to 65535"
    assert skipped["pipe.png"] == "not a file"


@pytest.mark.parametrize("room", [UNTOLD, 1])
def test_a_folder_whose_name_is_not_utf_8(latin1, room):
    numbered_folder(Path(latin1), 6)
    source = folder.build(latin1, Format(4, 1), 0.2, room)
    assert source.count == 6 - len(source.test(6, 0))
    assert len(stream(source, stop=2)) == 2
    assert source.fingerprint


def test_classes_and_arrays_in_a_folder_whose_name_is_not_utf_8(latin1):
    numbered_folder(Path(latin1) / "a", 2)
    np.savez(f"{latin1}/x.npz", x=numbers(4))
    data = settings("", image_size=4, image_channels=1)
    for source in (f"kth:{latin1}", f"npz:{latin1}/x.npz"):
        data.source = source
        assert pipeline.build(data).count
    data.source = f"cars3d:{latin1}"
    assert "has no .mat files" in one_line(pipeline.build, data)


def test_no_folder_and_no_pictures_are_one_line(tmp_path):
    assert "is no folder" in one_line(folder.build, str(tmp_path / "nowhere"), FORM, 0.1, 1)
    assert "has no pictures" in one_line(folder.build, str(tmp_path), FORM, 0.1, 1)
    (tmp_path / "notes.txt").write_text("no picture")
    assert "has no pictures" in one_line(folder.build, str(tmp_path), FORM, 0.1, 1)
    assert "is no folder" in one_line(folder.build, str(tmp_path / "notes.txt"), FORM, 0.1, 1)


def test_one_picture_serves_as_both(tmp_path):
    for room in (UNTOLD, 1):
        source = folder.build(str(numbered_folder(tmp_path, 1)), Format(4, 1), 0.5, room)
        assert source.test(10, 0).shape == (1, 4, 4, 1)
        assert stream(source, stop=3).shape == (3, 4, 4, 4, 1)


def test_a_linked_folder_is_followed_once(tmp_path):
    numbered_folder(tmp_path / "elsewhere" / "pictures", 2)
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(tmp_path / "elsewhere" / "pictures")
    (tmp_path / "elsewhere" / "pictures" / "back").symlink_to(tmp_path / "top")
    assert folder.listing(str(top)) == ["link/000.png", "link/001.png"]


# What is held out


def test_where_a_name_goes_depends_on_the_name_alone():
    names = [f"part{i % 7}/{i:05}.png" for i in range(10_000)]
    train, test = folder.split(names, 0.05)
    assert abs(len(test) - 500) < 6 * np.sqrt(500 * 0.95)
    assert sorted(train + test) == sorted(names)
    fewer = folder.split(names[:3000], 0.05)
    assert set(fewer[0]) <= set(train)
    assert set(fewer[1]) <= set(test)
    shuffled = folder.split(names[::-1], 0.05)
    assert set(shuffled[1]) == set(test)
    assert set(test) < set(folder.split(names, 0.2)[1])


@pytest.mark.parametrize("fraction", [0, 0.001, 0.05, 0.5])
def test_neither_part_is_ever_empty(fraction):
    for count in range(2, 30):
        for salt in range(10):
            names = [f"{salt}-{i}" for i in range(count)]
            train, test = folder.split(names, fraction)
            assert train
            assert test
            assert sorted(train + test) == sorted(names)
    assert folder.split(["alone"], fraction) == (["alone"], ["alone"])


# .npz


def npz(path, values=None, **arrays):
    np.savez(path, **arrays)
    values = {"image_size": 4, "image_channels": 1, "test_fraction": 0.25} | (values or {})
    return pipeline.build(settings(f"npz:{path}", **values))


def numbers(count, size=4, first=0):
    return np.tile(np.arange(first, first + count, dtype=np.uint8)[:, None, None], (1, size, size))


@pytest.mark.parametrize("names", [("x_train", "x_test"), ("train", "test")])
def test_npz_with_its_own_test_part(tmp_path, names):
    parts = dict(zip(names, (numbers(10), numbers(3, first=100)), strict=True))
    source = npz(tmp_path / "x.npz", y_train=np.arange(10), **parts)
    np.testing.assert_array_equal(source.test(10, 0), numbers(3, first=100)[..., None].astype(np.float32) / 255)
    got = stream(source, batch_size=5, stop=2)
    assert got.dtype == np.uint8
    assert sorted(got[..., 0, 0, 0].ravel()) == list(range(10))


@pytest.mark.parametrize("array", [{"x": numbers(20), "y": np.arange(20)}, {"images": numbers(20)}])
def test_npz_of_one_array_holds_a_part_out(tmp_path, array):
    source = npz(tmp_path / "x.npz", **array)
    held_out = (255 * source.test(100, 0)[:, 0, 0, 0]).round().astype(int).tolist()
    assert len(held_out) == 5
    train = stream(source, batch_size=5, stop=3)[..., 0, 0, 0].ravel().tolist()
    assert sorted(train + held_out) == list(range(20))
    again = npz(tmp_path / "x.npz", **array)
    np.testing.assert_array_equal(source.test(100, 0), again.test(100, 0))


def test_npz_of_bytes_is_resized_and_of_floats_is_not(tmp_path):
    source = npz(tmp_path / "x.npz", {"image_channels": 3}, x_train=numbers(10, 8), x_test=numbers(2, 8, 50)[..., None])
    assert sorted(stream(source, batch_size=10, stop=1)[..., 3, 3, 2].ravel()) == list(range(10))
    x = np.random.default_rng(0).random((10, 4, 4))
    source = npz(tmp_path / "y.npz", x_train=x, x_test=x[:3])
    assert source.test(5, 0).dtype == np.float32
    np.testing.assert_array_equal(source.test(5, 0), x[:3, :, :, None].astype(np.float32))
    assert stream(source, batch_size=5, stop=2).dtype == np.float32
    assert "floats are not resized" in one_line(lambda: npz(tmp_path / "z.npz", x=np.zeros((3, 8, 8))))


@pytest.mark.parametrize("shape", [(1, 6, 3), (6, 1, 3), (1, 6, 1), (1, 1, 1), (1, 1, 3)])
def test_npz_of_thin_pictures(tmp_path, shape):
    x = np.tile(np.array([10, 20, 30][: shape[-1]], np.uint8), (5, *shape[:2], 1))
    source = npz(tmp_path / "x.npz", {"image_channels": shape[-1], "crop": False}, x=x)
    np.testing.assert_array_equal(source.test(1, 0), np.tile(x[:1, :1, :1], (1, 4, 4, 1)).astype(np.float32) / 255)


def test_an_npy_is_an_npz_of_one_array(tmp_path):
    np.save(tmp_path / "x.npy", numbers(20))
    np.savez(tmp_path / "x.npz", numbers(20))
    values = {"image_size": 4, "image_channels": 1, "test_fraction": 0.25}
    one, other = (pipeline.build(settings(f"npz:{tmp_path}/x.{kind}", **values)) for kind in ("npy", "npz"))
    assert one.fingerprint == other.fingerprint
    assert one.count == 15


def medmnist(parts, labels=1):
    arrays = {f"{part}_images": numbers(5, first=10 * i) for i, part in enumerate(parts)}
    return arrays | {f"{part}_labels": np.arange(5 * labels, dtype=np.uint8).reshape(5, labels) for part in parts}


def test_medmnist_s_names(tmp_path, caplog):
    source = npz(tmp_path / "x.npz", **medmnist(["train", "val", "test"]))
    assert (255 * source.test(9, 0)[:, 0, 0, 0]).round().tolist() == [20, 21, 22, 23, 24]
    assert sorted(source.labels[0]) == source.labels[1].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(np.concatenate(list(source.train(9)))[:, 0, 0, 0], source.labels[0])
    assert "x.npz: val_images, val_labels" in caplog.text
    source = npz(tmp_path / "y.npz", **medmnist(["train", "val"]))
    assert (255 * source.test(9, 0)[:, 0, 0, 0]).round().tolist() == [10, 11, 12, 13, 14]


def test_several_labels_an_image_are_no_classes(tmp_path, caplog):
    assert npz(tmp_path / "x.npz", **medmnist(["train", "test"], labels=3)).labels is None
    assert "train_labels and test_labels of" in caplog.text


def test_arrays_that_are_not_used_are_named(tmp_path, caplog):
    npz(tmp_path / "x.npz", x=numbers(8), y=np.arange(8), extra=np.zeros(2))
    assert "not used of" in caplog.text
    assert "x.npz: y, extra" in caplog.text


def test_npz_of_more_than_the_memory_for_it_is_refused_before_it_is_read(tmp_path):
    """A megabyte of zeros takes a kilobyte of the file."""
    for kind, arrays in (("bomb", {"x": np.zeros((2**14, 8, 8), np.uint8)}), ("small", {"x": numbers(2**12, 1)})):
        np.savez_compressed(tmp_path / f"{kind}.npz", **arrays)
        values = {"image_size": 16, "image_channels": 1, "memory_gib": 2**-12}
        says = one_line(pipeline.build, settings(f"npz:{tmp_path}/{kind}.npz", **values))
        what = "arrays" if kind == "bomb" else "images"
        assert f"its {what} take 0.000977 GiB, more than data.memory_gib=0.000244141: raise it" in says


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_header_asks_for_no_memory(tmp_path, kind):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 4, 4)})
    (tmp_path / "x.npy").write_bytes(file.getvalue() + bytes(16))
    if kind == "npz":
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.write(tmp_path / "x.npy", "x.npy")
    says = one_line(pipeline.build, settings(f"npz:{tmp_path}/x.{kind}", image_size=4))
    assert "x is said to be uint8 (1000000000000, 4, 4), but there are 144 bytes of it" in says


def test_no_pickle_is_read(tmp_path):
    for kind, save in (("npy", np.save), ("npz", np.savez)):
        save(tmp_path / f"x.{kind}", np.array([print], object), allow_pickle=True)
        says = one_line(pipeline.build, settings(f"npz:{tmp_path}/x.{kind}", image_size=4))
        assert "holds Python objects" in says


def test_npz_of_one_image(tmp_path):
    source = npz(tmp_path / "x.npz", x=numbers(1, first=9))
    assert source.test(5, 0).shape == stream(source, batch_size=1, stop=1)[0].shape == (1, 4, 4, 1)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((3, 4), np.uint8)}, "has shape (3, 4)"),
        ({"x": np.zeros((3, 4, 4, 2), np.uint8)}, "has shape (3, 4, 4, 2)"),
        ({"x": np.zeros((0, 4, 4), np.uint8)}, "has shape (0, 4, 4, 1)"),
        ({"x": np.zeros((3, 0, 4), np.uint8)}, "has shape (3, 0, 4, 1)"),
        ({"x": np.zeros((3, 4, 4), np.int64)}, "is int64 from 0 to 0"),
        ({"x": np.full((3, 4, 4), 2.0)}, "is float64 from 2.0 to 2.0"),
        ({"x": np.full((3, 4, 4), np.nan)}, "is float64 from nan to nan"),
        ({"x": np.full((3, 4, 4), "a")}, "images are uint8"),
        ({"x": 3}, "has shape ()"),
        ({"a": numbers(3), "b": numbers(3)}, "name them x_train and x_test"),
        ({"x_train": numbers(3), "y_train": numbers(3)}, "name them x_train and x_test"),
        ({"x_train": numbers(3), "x_test": numbers(0)}, "x_test"),
        ({}, "x.npz"),
    ],
)
def test_npz_of_what_is_no_images_is_one_line(tmp_path, arrays, says):
    assert says in one_line(lambda: npz(tmp_path / "x.npz", **arrays))


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(255 - b for b in content[middle : middle + 20]) + content[middle + 20 :]


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "truncated", "damaged", "other zip"])
def test_what_is_no_npz_is_one_line(tmp_path, kind):
    path = tmp_path / "x.npz"
    noise = np.random.default_rng(0).integers(0, 256, (50, 4, 4), np.uint8)
    if kind in ("truncated", "damaged"):
        np.savez_compressed(path, x=noise)
    if kind == "folder":
        path.mkdir()
    if kind == "empty":
        path.touch()
    if kind == "text":
        path.write_text("not arrays")
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:400])
    if kind == "damaged":
        path.write_bytes(damaged(path.read_bytes()))
    if kind == "other zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("readme.txt", "not arrays")
    assert str(path) in one_line(pipeline.build, settings(f"npz:{path}", image_size=4))


# The command line


@pytest.mark.soak
def test_training_on_a_hostile_folder_names_what_it_skipped(hostile, tmp_path):
    out = run(
        "monsters",
        tmp_path / "run",
        *TINY,
        QUICK,
        "--config.objective.name=vae",
        "--config.model.family=mlp",
        f"--config.data.source=folder:{hostile}",
        "--config.data.image_size=16",
        "--config.data.memory_gib=1e-9",
        "--config.model.channels=(8,)",
        "--config.model.z_dim=4",
        "--config.train.batch_size=4",
        "--config.train.steps=10",
        "--config.checkpoint.every=10",
        "--config.eval.evaluators=('latents',)",
        "--config.eval.num_samples=8",
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["step"] == 10
    assert results["skipped"] == len(BAD)
    assert set(results["skipped_files"]) == BAD
    warnings = [line for line in out.splitlines() if "skipped" in line]
    for name in BAD:
        assert any(name in line for line in warnings), out
    assert "notes.txt" not in out
    used = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert (used["translate"], used["hue"], used["flip"]) == (5, 0.5, True)
