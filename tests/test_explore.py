"""Exploring a model: what its page computes, and the page through its HTTP interface, in a process of its own."""

import dataclasses
import importlib.util
import io
import signal
import socket
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest
from conftest import ROOT, environment, free_port, here
from PIL import Image

from sintrovae_jax import config as configs
from sintrovae_jax import dispatch, explore, inference
from sintrovae_jax.errors import UserError
from sintrovae_jax.explore import __main__ as command
from sintrovae_jax.explore import drawing
from sintrovae_jax.explore.uploads import Uploads
from sintrovae_jax.explore.views import SLIDERS, Views, error_map
from sintrovae_jax.models.layers import Stage

SMALL = {"data.image_size": 8, "model.channels": (4, 8), "eval.batch_size": 64}
WITH_GRADIO = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="needs gradio, of the extra `explore`, which brings Pillow 12"
)


def untrained(recipe, **values):
    """A small model of a recipe, as it is before its first step."""
    config = configs.read_recipe(f"configs/{recipe}.py")
    with config.ignore_type():
        config.update_from_flattened_dict(SMALL | {name.replace("__", "."): v for name, v in values.items()})
    networks, _, create = dispatch.from_config(config)
    return inference.from_state(config, networks, jax.jit(create)())


@pytest.fixture(scope="module")
def views():
    """Of a conditional model of 3 classes and 10 latent dimensions."""
    values = {"model__family": "mlp", "model__channels": (16,), "model__classes": 3, "model__z_dim": 10}
    return Views(untrained("digits_conditional", **values))


@pytest.fixture(scope="module")
def uploads(views):
    return Uploads(views.model)


def cells(picture, columns, side=8):
    """The images of a table, [N, side, side, 3] in [0, 1]: one pixel of each enlarged one."""
    width = (picture.shape[1] + 3) // columns
    scale = (width - 3) // side
    rows = (picture.shape[0] + 3) // (side * scale + 3)
    corners = [(r * (side * scale + 3), c * width) for r in range(rows) for c in range(columns)]
    cut = [picture[y : y + side * scale : scale, x : x + side * scale : scale] for y, x in corners]
    return np.stack(cut) / 255


def is_close(shown, x):
    """Whether images of a table are those of an array, to half of one of 256 levels."""
    np.testing.assert_allclose(shown, np.broadcast_to(np.asarray(x).clip(0, 1), shown.shape), atol=0.51 / 255)


# --- what is computed -------------------------------------------------------------------------------------------------


def test_samples_are_those_of_the_seed(views):
    shown = views.sample(3)
    np.testing.assert_array_equal(shown, views.sample(3.0))
    assert (shown != views.sample(4)).any()
    is_close(cells(shown, 3), views.model.sample(3, 30))


def test_a_class_and_a_temperature_of_zero_leave_one_sample(views):
    shown = cells(views.sample(3, 0, 2), 3)
    is_close(shown, views.model.decode(np.zeros((30, 10)), role="prior", labels=np.full(30, 2)))
    assert (shown == shown[0]).all()


def test_the_sliders_are_of_the_dimensions_with_the_highest_kl_first(views):
    x = np.asarray(views.model.sample(0, 256)).clip(0, 1)
    mean, logvar = (np.asarray(a, np.float64) for a in views.model.encode(x, views.model.even_labels(256)))
    kl = (0.5 * (np.exp(logvar) + mean**2 - 1 - logvar)).mean(0)
    np.testing.assert_allclose(views.kl, kl, rtol=1e-4, atol=1e-6)
    assert len(views.order) == SLIDERS < 10
    assert (np.diff(views.kl[views.order]) <= 0).all()
    assert views.kl[views.order].min() >= np.delete(views.kl, views.order).max()


def test_a_slider_moves_its_dimension_alone(views):
    place = views.place(None, 5, 1)
    values = views.sliders(place)
    np.testing.assert_allclose(views.moved(place, values), place.z, atol=0.0051)
    values[2] = 3.5
    moved = views.moved(place, values)
    assert moved[views.order[2]] == 3.5
    np.testing.assert_allclose(np.delete(moved - place.z, views.order[2]), 0, atol=0.0051)
    is_close(cells(views.edited(place, values), 2), views.model.decode([place.z, moved], True, "prior", [1, 1]))


def test_a_picture_starts_at_the_mean_of_its_posterior(views, rng):
    x = np.random.default_rng(0).random((8, 8, 1), np.float32)
    place = views.place(x, 0, 2)
    np.testing.assert_allclose(place.z, views.model.encode(x[None], [2]).mean[0], atol=1e-5)
    assert place.role == "posterior"


def test_a_column_shows_what_its_slider_does(views):
    place = views.place(None, 1, 0)
    shown = cells(views.traversed(place), SLIDERS).reshape(4, SLIDERS, 8, 8, 3)
    for row, value in enumerate((-3, -1, 1, 3)):
        z = place.z.copy()
        z[views.order[4]] = value
        is_close(shown[row, 4][None], views.model.decode(z[None], True, "prior", [0]))


def test_a_score_shows_a_picture_its_reconstruction_and_error(views):
    x = np.random.default_rng(1).random((8, 8, 1), np.float32)
    picture, text = views.score(x, 0, 40, 1)
    recon = np.asarray(views.model.reconstruct(x[None], [1]))[0]
    shown = cells(picture, 3)
    is_close(shown[:2], np.stack([x, recon]))
    of_pixels = np.array([[sum(abs(x[i, j] - recon[i, j])) for j in range(8)] for i in range(8)])
    np.testing.assert_allclose(error_map(x, recon), of_pixels, atol=1e-6)
    assert shown[2].sum(-1).argmax() == of_pixels.argmax()
    is_close(shown[2][None], drawing.heat(of_pixels / of_pixels.max())[None])
    log_p = float(views.model.log_likelihood(x[None], 40, labels=[1])[0])
    assert f"log p(x) given the class {log_p:,.1f} nats" in text
    assert f"Squared error {np.square(x - recon).sum():.2f}" in text


def test_colours_go_from_black_over_red_and_yellow_to_white():
    values = np.array([[0, 1 / 3, 2 / 3, 1]])
    np.testing.assert_allclose(drawing.heat(values)[0], [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], atol=1e-12)


def test_an_interpolation_is_the_models(views):
    a, b = np.random.default_rng(2).random((2, 8, 8, 1), np.float32)
    for path in ("linear", "spherical"):
        shown = cells(views.interpolated(a, b, 0, 0, path, 0, 2), 5)
        is_close(shown[[0, -1]], np.stack([a, b]))
        is_close(shown[1:-1], views.model.interpolate(a[None], b[None], 8, path, ([0], [2]))[0])


def test_two_encoders_exchange_class_and_content():
    views = Views(untrained("sprites", model__class_dim=2, model__z_dim=5, model__kernel=3, model__hidden=8))
    assert views.can()[-1] == "translate"
    a, b = np.random.default_rng(0).random((2, *views.model.shape), np.float32)
    shown = cells(views.translated(a, b, 0, 0), 3)
    is_close(shown[5], views.model.translate(b[None], a[None])[0])
    is_close(shown[[1, 2]], np.stack([a, b]))


@pytest.mark.soak
def test_styles_are_mixed_by_layers():
    model = untrained("digits_style", model__channels=(4, 4), model__z_dim=6)
    views = Views(dataclasses.replace(model, stage=Stage(1)))
    assert views.can()[-1] == "mix"
    assert views.layers == 4
    all_of_the_row = cells(views.mixed(0, 1, 4), 5).reshape(5, 5, 8, 8, 3)
    np.testing.assert_array_equal(all_of_the_row[1:, 1:], np.repeat(all_of_the_row[1:, :1], 4, 1))
    z = [views.model.prior(seed, 4)[2:3] for seed in (0, 1)]
    row, column = (views.model.styles(each, 0.5) for each in z)
    mixed = np.where(np.arange(4)[:, None] < 1, row, column)
    shown = cells(views.mixed(0, 1, 1, 0.5), 5).reshape(5, 5, 8, 8, 3)
    is_close(shown[3, 3][None], views.model.synthesize(mixed, [0]))


@pytest.mark.soak
def test_points_are_drawn_beside_their_density_and_clouds_as_clouds():
    points = Views(untrained("gaussians8", data__image_size=0, model__channels=(8,)))
    assert points.can() == ("sample",)
    assert points.sample(0).shape[2] == 3
    assert points.sample(0).std() > 1
    small = {"data__points": 16, "model__hidden": 8, "model__decoder_channels": (8,), "model__z_dim": 4}
    clouds = Views(untrained("shapes", data__image_size=0, **small))
    assert clouds.can() == ("sample", "latents", "interpolate")
    drawn = clouds.sample(0), clouds.interpolated(None, None, 0, 1), clouds.traversed(clouds.place(None, 0))
    assert all(picture.std() > 1 for picture in drawn)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, True, float("nan"), 2**32])
def test_other_seeds_are_refused(views, seed):
    with pytest.raises(UserError, match="a seed is a whole number from 0"):
        views.sample(seed)


def test_other_numbers_are_refused(views):
    place = views.place(None, 0)
    for refused in (
        lambda: views.sample(0, 2),
        lambda: views.sample(0, 1, 3),
        lambda: views.moved(place, [float("nan")] * SLIDERS),
        lambda: views.moved(place, [0.0]),
        lambda: views.score(None, 0, 1e9),
        lambda: views.interpolated(None, None, 0, 1, "zigzag"),
    ):
        with pytest.raises(UserError):
            refused()


# --- pictures that are uploaded ---------------------------------------------------------------------------------------


def encoded(picture, kind="PNG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def bomb():
    """A PNG whose header promises 40,000 × 40,000 pixels."""
    small = bytearray(encoded(Image.new("L", (9, 9))))
    small[16:24] = (40000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    return bytes(small)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
BAD = {
    "empty": b"",
    "text": b"no picture at all",
    "cut": encoded(NOISE)[:800],
    "cut jpeg": encoded(NOISE, "JPEG")[:500],
    "header": b"\x89PNG\r\n\x1a\n" + b"x" * 300,
    "damaged": encoded(NOISE)[:200] + b"\0" * 300 + encoded(NOISE)[500:],
    "bomb": bomb(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "floats": encoded(Image.fromarray(np.full((9, 9), 7, np.float32)), "TIFF"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_upload_is_one_line_and_the_next_is_read(uploads, tmp_path, kind):
    bad, good = tmp_path / "bad.png", tmp_path / "good.png"
    bad.write_bytes(BAD[kind])
    good.write_bytes(encoded(NOISE))
    with pytest.raises(UserError) as error:
        uploads.read(bad)
    assert "\n" not in str(error.value)
    assert "cannot be read" in str(error.value)
    assert uploads.read(good).shape == (8, 8, 1)


def test_a_file_that_is_too_long_or_gone_is_not_read(uploads, tmp_path):
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(2**25 + 1)
    with pytest.raises(UserError, match="more than 33,554,432"):
        uploads.read(tmp_path / "long.png")
    for path in (tmp_path / "gone.png", tmp_path, "nul\0"):
        with pytest.raises(UserError, match="cannot be read"):
            uploads.read(path)


def test_pictures_are_converted_as_training_data_are(uploads, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    wide = np.full((8, 20), 9, np.uint8)
    wide[:, 6:14] = grey
    half = Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 0)]))
    written = {
        "wide": (Image.fromarray(wide), grey),
        "deep": (Image.fromarray(grey.astype(np.uint16) * 257), grey),
        "transparent": (half, np.full_like(grey, 255)),
        "rgb": (Image.fromarray(np.dstack([grey] * 3)), grey),
    }
    for name, (picture, expected) in written.items():
        picture.save(tmp_path / f"{name}.png")
        np.testing.assert_allclose(uploads.read(tmp_path / f"{name}.png")[..., 0] * 255, expected, atol=1, err_msg=name)
    assert "resized to 8×8, made grey, and laid on white" in uploads.conversion


# --- the command and the page -----------------------------------------------------------------------------------------


def test_without_the_extra_it_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    said, code = here(["pretrained:digits"], command.main)
    assert code == 2
    assert said.count("\n") == 1
    assert "gradio is not installed: install the extra `explore`" in said


@WITH_GRADIO
def test_a_page_is_built_with_the_tabs_that_the_model_has(views):
    import gradio

    page = explore.build(views.model, "<b>mine</b>")
    assert [b.label for b in page.blocks.values() if isinstance(b, gradio.Tab)] == [
        *("Sample", "Latents", "Score", "Interpolate")
    ]
    assert [b.label for b in page.blocks.values() if isinstance(b, gradio.Dropdown)] == ["Class"] * 5
    texts = [b.value for b in page.blocks.values() if isinstance(b, gradio.Markdown)]
    assert "&lt;b&gt;mine" in texts[0] and "3 classes, 10 latent dimensions" in texts[0]
    assert not page.analytics_enabled


@WITH_GRADIO
def test_what_cannot_be_served_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        for arguments, why in (
            (["pretrained:digits", "--port", port], "Address already in use"),
            (["pretrained:digits", "--port", "http"], "--port is a whole number"),
            (["pretrained:digits", "--host", "192.0.2.1"], "cannot listen at 192.0.2.1:7860"),
            (["pretrained:nothing", "--port", str(free_port())], "there are digits, digits_conditional"),
            ([], "MODEL"),
        ):
            said, code = here(arguments, command.main)
            assert (code, said.count("\n")) == (2, 1), said
            assert why in said


@WITH_GRADIO
@pytest.mark.soak
def test_the_page_answers_refuses_and_ends(tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    port = free_port()
    arguments = [sys.executable, "-m", "sintrovae_jax.explore", "pretrained:digits", "--port", str(port)]
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = process.stdout.readline().decode()
        assert line.startswith(f"http://127.0.0.1:{port}/"), process.stderr.read()
        with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", port)):
            pass
        client = Client(f"http://127.0.0.1:{port}", verbose=False, download_files=tmp_path)

        def pixels(*values, name):
            out = client.predict(*values, api_name=name)
            return np.asarray(Image.open(out[0] if isinstance(out, tuple) else out))

        first = pixels(7, 1, name="/sample")
        np.testing.assert_array_equal(first, pixels(7, 1, name="/sample"))
        assert (first != pixels(8, 1, name="/sample")).any()
        (tmp_path / "good.png").write_bytes(encoded(NOISE))
        good = handle_file(tmp_path / "good.png")
        *values, edited, _ = client.predict(0, good, api_name="/latents_start")
        same = pixels(0, good, *values, name="/latents")
        np.testing.assert_array_equal(same, np.asarray(Image.open(edited)))
        moved = pixels(0, good, 3, *values[1:], name="/latents")
        assert (moved != same).any()
        assert "log p(x)" in client.predict(good, 0, 20, api_name="/score")[1]
        assert pixels(good, None, 0, 1, "spherical", name="/interpolate").std() > 1
        for kind, content in BAD.items():
            (tmp_path / f"{kind}.png").write_bytes(content)
            with pytest.raises(AppError, match="cannot be read"):
                client.predict(handle_file(tmp_path / f"{kind}.png"), 0, 20, api_name="/score")
        with pytest.raises(AppError, match="a seed is a whole number"):
            client.predict(-1, 1, api_name="/sample")
        np.testing.assert_array_equal(first, pixels(7, 1, name="/sample"))
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1].decode()
        assert process.returncode == 0
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()
