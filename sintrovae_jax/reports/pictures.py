"""Pictures as data inside a page: unchanged if they fit a number of bytes, otherwise smaller or coarser."""

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sintrovae_jax.parallel import first_line

_MOST_PIXELS = 60_000_000  # pictures with more are not decoded; a small file may claim any number
_FRAME = 900  # the most pixels per side of a picture of the slider
FRAMES = 60  # the most pictures of one slider


class Picture(NamedTuple):
    """A picture for an <img>. source: a data: URL. width, height: the file's. note: how the picture differs from it."""

    source: str
    width: int
    height: int
    note: str = ""


class Frames(NamedTuple):
    """Pictures of training: (step, picture) each. total: the number in the workdir."""

    frames: list[tuple[int, Picture]]
    total: int


def read(path: Path, most: int, side: int | None = None) -> Picture:
    """A picture from a file, with at most `most` bytes in the page.

    side: the most pixels per side. Raises OSError or ValueError if it cannot be read or is too large to decode.
    """
    image, width, height = _decoded(path, side)
    raw = most * 3 // 4 - 64  # base64 has four characters for three bytes
    coded, kind = _png(image), "png"
    scale, quality = image.width / width, ""
    while len(coded) > raw:
        if quality:  # make it smaller: coarser would look bad
            smaller = max(1, round(image.width * 0.75)), max(1, round(image.height * 0.75))
            if smaller == image.size:
                raise ValueError("it does not fit the page")
            image = image.resize(smaller, Image.Resampling.LANCZOS)
        coded, kind, quality = _jpeg(image), "jpeg", "as JPEG"
        scale = image.width / width
    size = f"at {scale:.0%} of its size" if scale < 1 else ""
    source = f"data:image/{kind};base64,{base64.b64encode(coded).decode()}"
    return Picture(source, width, height, " ".join(filter(None, (size, quality))))


def shown(path: Path, most: int) -> tuple[Picture | None, str]:
    """The picture and ''; or None and the reason: files from others may be damaged in any way."""
    try:
        return read(path, most), ""
    except Exception as error:  # remote storage may raise anything, too
        return None, f"cannot be shown: {first_line(error)}"


def _decoded(path: Path, side: int | None) -> tuple[Image.Image, int, int]:
    """The picture without transparency, with at most `side` pixels per side, and the file's width and height."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the number of pixels is checked here
        try:
            opened = Image.open(file)
            width, height = opened.size
            if width * height > _MOST_PIXELS:
                raise ValueError(f"it has {width}×{height} pixels")
            image = opened.convert("L" if opened.mode in ("1", "L") else "RGB")
        except (Image.DecompressionBombError, SyntaxError) as error:  # Pillow's errors for damaged files
            raise ValueError(str(error)) from None
    if side and max(width, height) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image, width, height


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png", optimize=True)
    return out.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "jpeg", quality=85, optimize=True)
    return out.getvalue()


def frames(files: Sequence[tuple[int, Path]], most: int) -> Frames:
    """Pictures of training from (step, file), with at most `most` bytes in the page together.

    If there are too many, takes some at even distances, with the first and the last. Unreadable files are left out.
    """
    chosen = evenly(files, FRAMES)
    # A frame's size is unknown until it is encoded. The last one, of the trained model, has the most detail.
    for _, path in chosen[::-1]:
        try:
            last = read(path, most, _FRAME)
        except (OSError, ValueError):
            continue
        least = min(len(last.source), max(40_000, most // FRAMES))
        chosen = evenly(files, min(len(chosen), max(2, most // least)))
        break
    out = []
    for step, path in chosen:
        try:
            out.append((step, read(path, most // len(chosen), _FRAME)))
        except (OSError, ValueError):
            continue
    return Frames(out, len(files))


def evenly(items: Sequence[tuple[int, Path]], most: int) -> Sequence[tuple[int, Path]]:
    """At most `most` (at least 2) of the items, at even distances, with the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
