"""Mutated files through everything that opens what strangers made.

    python tests/fuzz.py [KIND ...] [--count 10000] [--seed 0] [--keep FOLDER]

An input is a function of (kind, seed, number). It passes if it is opened, or refused in one line: a `UserError`, for
pictures a reason. Anything else is a finding: another exception, a message of several lines, code that is run, memory
that a header asks for and no data fill, a process that ends or does not. Findings are printed and their inputs kept.
"""

import argparse
import contextlib
import copy
import faulthandler
import functools
import io
import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}

import jax
import numpy as np
import tensorstore
from PIL import Image

from sintrovae_jax import checkpoint, dispatch, inference, logs, perceptual, standing, workdirs
from sintrovae_jax import config as configs
from sintrovae_jax.data import identity, images, pipeline, readers
from sintrovae_jax.data.images import Format
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import features
from sintrovae_jax.models import Model
from sintrovae_jax.official import convert, layouts, pth
from sintrovae_jax.tools import compare

Files = dict[str, bytes]  # by name
Rng = np.random.Generator
_MEMORY = 2**30  # bytes that opening one input may take
_SECONDS = 600  # after which an input does not end: more than a busy machine takes
_BY_HEADER = re.compile(r"unable to allocate|MemoryError|not enough memory|can't allocate|bad_alloc", re.IGNORECASE)
_CODE = ("this", "antigravity")  # modules that inputs name and nothing here imports


class Finding(Exception):
    """What must not come of any input."""


class Kind(NamedTuple):
    """files: the sound inputs, each {name: content}. open: opens an input that lies in a folder."""

    files: Callable[[], list[Files]]
    open: Callable[[Path], None]


# Mutations


_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1]


def of_bytes(rng: Rng, data: bytes) -> bytes:
    """A few changes at random places, most of them near the beginning."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        near = min(len(data), 64) if rng.random() < 0.4 else len(data)
        at, size = int(rng.integers(near)), int(rng.integers(1, 17))
        match rng.integers(7):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at] = int(rng.integers(256))
            case 2:
                number, width = _NUMBERS[rng.integers(len(_NUMBERS))], int(rng.choice([1, 2, 4, 8]))
                order = "little" if rng.random() < 0.5 else "big"
                data[at : at + width] = (number % 256**width).to_bytes(width, order)
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size] * int(rng.integers(1, 50))
            case 5:
                data[at : at + size] = bytes(len(data[at : at + size]))
            case 6 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


_VALUES = [
    *(None, True, False, -1, 0, 1, 2, 64, 2**31, 2**63, 10**30, 10**400, -0.5, 0.5, 1e308, float("nan"), float("inf")),
    *("", "a", "../../x", "/dev/zero", "\ud800", "\x1b[2J\n", "this:s", "antigravity:fly", "conv", "x" * 999),
    *([], {}, [[]], [1] * 500, [2**40], ["a"], [None], {"a": {"a": 1}}, [0.1, 0.2]),
]


def of_json(rng: Rng, data: bytes) -> bytes:
    """Other values, keys that are missing, new or moved."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return of_bytes(rng, data)
    for _ in range(int(rng.integers(1, 4))):
        branch = tree
        while isinstance(branch, dict | list) and len(branch):
            key = rng.choice(list(branch)) if isinstance(branch, dict) else int(rng.integers(len(branch)))
            if isinstance(branch[key], dict | list) and len(branch[key]) and rng.random() < 0.8:
                branch = branch[key]
                continue
            match rng.integers(6):
                case 0:
                    del branch[key]
                case 1 if isinstance(branch, dict):
                    branch[f"{key}x"] = branch.pop(key)
                case 2:
                    branch[key] = copy.deepcopy(tree)
                case _:
                    branch[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])
            break
    text = json.dumps(tree)
    if rng.random() < 0.01:
        text = "[" * 100_000 + text
    return text.encode()


_TYPES = ["|O", "<f8", "<f4", "|u1", "<U9", "|V0", ">f2", "<c16", "m8", "<U99999999"]


def of_npy(rng: Rng, data: bytes) -> bytes:
    """Another header of a valid length."""
    size = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + size].decode("latin1")
    changes = [
        (r"\d+", str(_NUMBERS[rng.integers(len(_NUMBERS))])),
        (r"'descr': '[^']*'", f"'descr': '{rng.choice(_TYPES)}'"),
        (r"False", "True"),
        (r"\(", "(-"),
        (r"\(", "(" * 200),
        (r"\((\d+)", r"(\1, \1"),
    ]
    for _ in range(int(rng.integers(1, 3))):
        pattern, new = changes[rng.integers(len(changes))]
        header = re.sub(pattern, lambda _, new=new: new.replace(r"\1", "9"), header, count=int(rng.integers(1, 3)))
    encoded = header.encode("latin1")
    return data[:8] + (len(encoded) % 2**16).to_bytes(2, "little") + encoded + data[10 + size :]


def of_png(rng: Rng, data: bytes) -> bytes:
    """A changed chunk with the right checksum."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return of_bytes(rng, data)
    number = int(rng.integers(len(chunks)))
    name, content = chunks[number]
    if name == b"IDAT" and rng.random() < 0.5:
        with contextlib.suppress(zlib.error):
            content = zlib.compress(of_bytes(rng, zlib.decompress(content)))
    else:
        content = of_bytes(rng, content)
    chunks[number] = (name, content)
    parts = [len(c).to_bytes(4, "big") + n + c + zlib.crc32(n + c).to_bytes(4, "big") for n, c in chunks]
    return data[:8] + b"".join(parts)


def of_mat(rng: Rng, data: bytes) -> bytes:
    """A change of MATLAB's elements, compressed again if they were."""
    header, tag, content = data[:128], data[128:136], data[136:]
    with contextlib.suppress(zlib.error):
        changed = zlib.compress(of_bytes(rng, zlib.decompress(content)))
        return header + tag[:4] + len(changed).to_bytes(4, "little") + changed
    return header + of_bytes(rng, tag + content)


def of_zip(rng: Rng, data: bytes) -> bytes:
    """A changed member, or name, of an archive that is sound."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(member, archive.read(member)) for member in archive.infolist()]
    except Exception:
        return of_bytes(rng, data)
    if not members:
        return of_bytes(rng, data)
    out, number = io.BytesIO(), int(rng.integers(len(members)))
    how = int(rng.choice([zipfile.ZIP_STORED] * 6 + [zipfile.ZIP_DEFLATED] * 3 + [zipfile.ZIP_BZIP2]))
    with zipfile.ZipFile(out, "w", how) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that occurs twice
        for i, (member, content) in enumerate(members):
            name = member.filename
            if i == number:
                change = rng.random()
                content = mutated(rng, content) if change < 0.8 else content  # noqa: PLW2901
                content = bytes(2**22) if 0.8 <= change < 0.82 else content  # noqa: PLW2901
                name = str(rng.choice([name, "x.npy", "a\nb.npy", "\x1b[2J.npy", "../x.npy"])) if change > 0.9 else name
            archive.writestr(name, content)
    return of_bytes(rng, out.getvalue()) if rng.random() < 0.1 else out.getvalue()


def mutated(rng: Rng, data: bytes) -> bytes:
    """A file's content, changed as one who knows its format would, or blindly."""
    known = {b"\x89PNG": of_png, b"PK": of_zip, b"\x93NUMPY": of_npy, b"{": of_json, b"MATLAB": of_mat}
    how = next((change for beginning, change in known.items() if data.startswith(beginning)), of_bytes)
    return how(rng, data) if rng.random() < 0.7 else of_bytes(rng, data)


def mutated_files(rng: Rng, files: Files) -> Files:
    """One or two of the files changed, one of ten times one gone."""
    files = dict(files)
    for _ in range(int(rng.integers(1, 3))):
        name = str(rng.choice(list(files)))
        files[name] = mutated(rng, files[name])
    if len(files) > 1 and rng.random() < 0.1:
        del files[str(rng.choice(list(files)))]
    return files


# Pictures

_FORM = Format(16, 3)


def _pictures() -> list[Files]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8))
    grey, deep = rgb.convert("L"), Image.fromarray(rng.integers(0, 65536, (24, 40)).astype(np.uint16))
    alpha, exif = rgb.convert("RGBA"), Image.Exif()
    exif[0x0112] = 6

    def several(picture: Image.Image) -> dict:
        return {"save_all": True, "append_images": [picture.copy()]}

    wanted = [
        *((picture, "PNG", {}) for picture in (rgb, grey, deep, alpha, rgb.convert("P"), rgb.convert("1"))),
        *((rgb, "JPEG", options) for options in ({}, {"progressive": True}, {"exif": exif}, {"subsampling": 0})),
        *((rgb.convert("CMYK"), "JPEG", {}), (rgb, "MPO", several(rgb)), (grey, "JPEG", {"progressive": True})),
        *(
            (rgb, "GIF", several(alpha)),
            (rgb.convert("P"), "GIF", {"transparency": 3}),
            (rgb, "BMP", {}),
            (alpha, "BMP", {}),
        ),
        *((alpha, "WEBP", options) for options in ({}, {"lossless": True}, several(alpha))),
        *((rgb, "TIFF", {"compression": how}) for how in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        *((deep, "TIFF", {}), (rgb.convert("1"), "TIFF", {"compression": "group4"}), (rgb, "TIFF", several(rgb))),
        *((rgb, "PPM", {}), (grey, "PPM", {}), (deep, "PPM", {}), (rgb.convert("1"), "PPM", {})),
        *((alpha, "AVIF", options) for options in ({}, {"exif": exif}, several(alpha))),
    ]
    out = []
    for picture, kind, options in wanted:
        if kind != "MPO" and kind not in images.FORMATS:
            continue
        file = io.BytesIO()
        picture.copy().save(file, kind, **options)  # a copy, as saving leaves settings in a picture
        out.append({"picture": file.getvalue()})
    return [*out, {"picture": b"P3 4 4 255\n" + b"1 2 3 " * 16}]


@functools.cache
def _reader() -> readers.Readers:
    return readers.Readers(_FORM, 1)


def _open_picture(folder: Path) -> None:
    x = np.empty((1, *_FORM.shape), np.uint8)
    for reason in _reader().read([str(folder / "picture")], x).values():
        if "the process that read it ended" in reason:
            raise Finding(reason)
        raise UserError(reason)


# Arrays


def _arrays() -> list[Files]:
    x, y = np.arange(160, dtype=np.uint8).reshape(10, 4, 4), np.arange(10)[:, None]
    halves = {"x_train": x, "x_test": x, "y_train": y, "y_test": y}
    medmnist = {f"{part}_{what}": a for part in ("train", "val", "test") for what, a in (("images", x), ("labels", y))}
    out = []
    for save, arrays in ((np.savez, halves), (np.savez_compressed, medmnist), (np.savez, {"x": x / 255})):
        file = io.BytesIO()
        save(file, **arrays)
        out.append({"x.npz": file.getvalue()})
    for array in (x, np.asfortranarray(x), np.array([print, {}], object)):
        file = io.BytesIO()
        np.save(file, array)
        out.append({"x.npz": file.getvalue()})
    return out


def _data(source: str, **values: Any) -> Any:
    data = configs.default().data
    data.update({"source": source, "image_size": 4, "image_channels": 1, "memory_gib": 2**-6} | values)
    return data


def _open_arrays(folder: Path) -> None:
    source = pipeline.build(_data(f"npz:{folder / 'x.npz'}"))
    source.test(3, 0)
    next(source.train(3))


def _cars() -> list[Files]:
    from scipy.io import savemat

    x, out = np.zeros((4, 4, 3, 24, 4), np.uint8), []
    for compressed in (False, True):
        file = io.BytesIO()
        savemat(file, {"im": x}, do_compression=compressed)
        out.append({"cars/a.mat": file.getvalue(), "cars/b.mat": file.getvalue()})
    return out


def _open_cars(folder: Path) -> None:
    pipeline.build(_data(f"cars3d:{folder / 'cars'}", image_channels=3))


# Configs and checkpoints


def _config_files() -> list[Files]:
    recipes = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
    values = [configs.read_recipe(str(path)).to_dict() for path in recipes]
    return [{workdirs.CONFIG: json.dumps(value, indent=2).encode()} for value in values]


def _open_config(folder: Path) -> None:
    config = inference.config_of(folder)
    with contextlib.suppress(UserError):
        features.builder(config.eval.features)
    inference.described(config, folder)


@functools.cache
def _tiny() -> Any:
    config = configs.read_recipe("gaussians8")
    config.update_from_flattened_dict({"model.channels": (4,), "train.ema": 0.5, "eval.features": "this:s"})
    return config


@functools.cache
def _workdir() -> Files:
    config = _tiny()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        configs.write(config, folder)
        with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
            checkpoints.save(jax.tree.map(np.asarray, dispatch.from_config(config)[2]()))
        workdirs.write_results(folder, {"step": 0, "jsd": 0.1})
        identity.write(_DATA, folder)
        (folder / workdirs.METRICS).write_text("step,seconds,examples_per_second,loss\r\n5,1,2,3\r\n10,2,2,3\r\n")
        return _read_files(folder)


def _read_files(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _write_files(files: Files, folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def in_database(rng: Rng, files: Files) -> Files:
    """A change of a value of Orbax's database, whose checksums are right."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write_files(files, folder)
        item = folder / "checkpoints" / "0" / str(rng.choice(["ema", "ema", "networks", "training"]))
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{item}/"}).result()
        for _ in range(int(rng.integers(1, 3))):
            keys = store.list().result()
            arrays = [key for key in keys if key.endswith(b".zarray")]
            key = (arrays if rng.random() < 0.7 else keys)[rng.integers(len(arrays if arrays else keys))]
            if rng.random() < 0.1:
                store.delete_range(tensorstore.KvStore.KeyRange(key, key + b"\xff")).result()
            else:
                store.write(key, mutated(rng, store.read(key).result().value)).result()
        return _read_files(folder)


def _checkpoint_files() -> list[Files]:
    return [{name: data for name, data in _workdir().items() if name.startswith(("checkpoints", "config"))}]


def _open_checkpoint(folder: Path) -> None:
    errors = []
    for open_it in (lambda: inference.load(folder), lambda: _restore(folder)):
        try:
            open_it()
        except UserError as error:
            errors.append(error)
    for error in errors:
        raise error


def _restore(folder: Path) -> None:
    with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
        checkpoints.restore(_abstract())


@functools.cache
def _abstract() -> Any:
    return jax.eval_shape(dispatch.from_config(_tiny())[2])


_DATA = identity.of_arrays({"x_train": np.zeros(3, np.uint8), "x_test": np.zeros((2, 2))})


def _result_files() -> list[Files]:
    names = (workdirs.RESULTS, workdirs.METRICS, workdirs.DATA)
    return [{name: _workdir()[name]} for name in names] + [{name: _workdir()[name] for name in names}]


def _open_results(folder: Path) -> None:
    if (folder / workdirs.METRICS).exists():
        metrics = logs.Metrics(folder, 7)
        metrics.seconds(), metrics.rate()
        metrics.close()
    stored = identity.read(folder)
    if stored is not None:
        identity.difference(stored, _DATA)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        compare.main(["", str(folder), str(folder)])
    if any(not (c.isprintable() or c == "\n") for c in out.getvalue()):
        raise Finding("a table that moves the cursor")


def _standing_files() -> list[Files]:
    (path,) = (inference.PRETRAINED / "digits" / workdirs.STANDING).iterdir()
    return [{f"{workdirs.STANDING}/{path.name}": path.read_bytes()}]


@functools.cache
def _model() -> Model:
    return inference.load("pretrained:digits", batch_norm="running")


def _open_standing(folder: Path) -> None:
    model = standing.read(_model(), folder)
    if model is None:
        raise UserError("other averages, or none")
    for x in jax.tree.leaves(model.variables):
        np.isfinite(x)


# PyTorch's files


def _torch_files() -> list[Files]:
    torch = pth.torch()
    config = _tiny()
    variables = jax.tree.map(np.asarray, dispatch.from_config(config)[2]()).variables
    tensors = {name: torch.from_numpy(x) for name, x in layouts.to_official(config, variables).items()}

    class Code:
        def __reduce__(self) -> tuple:
            return exec, ("import this",)

    out = []
    for content in ({"epoch": 3, "model": tensors}, {"model": tensors, "x": Code()}):
        for new in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=new)
            out.append({"x.pth": file.getvalue()})
    return out


def _open_torch(folder: Path) -> None:
    config = _tiny()
    layouts.from_official(config, convert.read(folder / "x.pth").tensors)


def _weight_files() -> list[Files]:
    arrays = {name: np.zeros([min(n, 2) for n in shape], np.float32) for name, shape in perceptual.published().items()}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return [{"x.npz": file.getvalue()}, *_torch_files()]


def _open_weights(folder: Path) -> None:
    from sintrovae_jax.evaluators import inception_weights

    (path,) = folder.iterdir()
    with contextlib.suppress(UserError):
        inception_weights.read(path)
    perceptual.read(path)


KINDS = {
    "pictures": Kind(_pictures, _open_picture),
    "arrays": Kind(_arrays, _open_arrays),
    "cars": Kind(_cars, _open_cars),
    "configs": Kind(_config_files, _open_config),
    "checkpoints": Kind(_checkpoint_files, _open_checkpoint),
    "results": Kind(_result_files, _open_results),
    "standing": Kind(_standing_files, _open_standing),
    "torch": Kind(_torch_files, _open_torch),
    "weights": Kind(_weight_files, _open_weights),
}


# Running


@functools.cache
def _sound(kind: str) -> list[Files]:
    return KINDS[kind].files()


def inputs(kind: str, seed: int, numbers: range) -> Iterator[tuple[int, Files]]:
    """The inputs of these numbers. The first ones are the sound files."""
    files = _sound(kind)
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        chosen = files[number % len(files)]
        if number < len(files):
            yield number, chosen
        elif kind == "checkpoints" and rng.random() < 0.6:
            yield number, in_database(rng, chosen)
        else:
            yield number, mutated_files(rng, chosen)


def outcome(kind: str, files: Files) -> str:
    """'opened', 'refused: MESSAGE', or 'FOUND: WHAT'."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "stranger"
        folder.mkdir()
        _write_files(files, folder)
        try:
            KINDS[kind].open(folder)
            result = "opened"
        except UserError as error:
            message = str(error)
            result = f"refused: {message.replace(place, '')}"
            if not message or not message.isprintable() or _BY_HEADER.search(message):
                result = f"FOUND: a message that is not one good line: {message!r}"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            chain = "".join(traceback.format_exception(error))[-3000:]
            result = f"FOUND: {type(error).__name__}: {error} ({where.filename}:{where.lineno})\n{chain}"
    if any(module in sys.modules for module in _CODE):
        return "FOUND: code was run"
    return result


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Limits the memory of this process to what it has and `_MEMORY`."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + _MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def outcomes(kind: str, seed: int, numbers: range) -> Iterator[tuple[int, str]]:
    """The outcomes of inputs, in this process."""
    logging.disable(logging.ERROR)
    with limited(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, files in inputs(kind, seed, numbers):
            yield number, outcome(kind, files)
    logging.disable(logging.NOTSET)


def _work(kind: str, seed: int, start: int, count: int) -> None:
    """A process of its own: one line of JSON for the beginning of each input, one for its outcome."""
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for number in range(start, count):
        out.write(json.dumps([number, ""]) + "\n")
        faulthandler.dump_traceback_later(_SECONDS, exit=True)
        for _, result in outcomes(kind, seed, range(number, number + 1)):
            out.write(json.dumps([number, result]) + "\n")
        faulthandler.cancel_dump_traceback_later()


def isolated(kind: str, seed: int, count: int) -> Iterator[tuple[int, str]]:
    """The outcomes of the first `count` inputs, in a process that is replaced when one ends it."""
    start = 0
    while start < count:
        line = [sys.executable, __file__, "--work", kind, str(seed), str(start), str(count)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            for text in process.stdout:
                start, result = json.loads(text)
                if result:
                    yield start, result
                    start += 1
        if start < count:
            yield start, f"FOUND: the process ended with {process.returncode}"
            start += 1


def main() -> int:
    if sys.argv[1:2] == ["--work"]:
        kind, *numbers = sys.argv[2:]
        _work(kind, *map(int, numbers))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz")
    args = parser.parse_args()
    found = 0
    for kind in args.kinds or KINDS:
        counts: Counter[str] = Counter()
        for number, result in isolated(kind, args.seed, args.count):
            counts[result.partition(":")[0]] += 1
            if result.startswith("FOUND"):
                print(f"{kind} {number}: {result}", flush=True)
                place = args.keep / kind / str(number)
                shutil.rmtree(place, ignore_errors=True)
                for _, files in inputs(kind, args.seed, range(number, number + 1)):
                    _write_files(files, place)
        print(f"{kind}: {dict(counts)}", flush=True)
        found += counts["FOUND"]
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
