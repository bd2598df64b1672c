"""Pictures inside a page, as data: as they are while they fit a number of bytes, smaller or coarser where not."""

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sintrovae_jax.parallel import first_line

_MOST_PIXELS = 60_000_000  # of a picture that is decoded at all; a file of few bytes may claim any number
_FRAME = 900  # pixels a side of a picture of the slider, at most
FRAMES = 60  # of one slider, at most


class Picture(NamedTuple):
    """A picture for an <img>. source: a data: URL. width, height: of its file. note: how it differs from that."""

    source: str
    width: int
    height: int
    note: str = ""


class Frames(NamedTuple):
    """Pictures of training: (step, picture) each. total: how many there are in the workdir."""

    frames: list[tuple[int, Picture]]
    total: int


def read(path: Path, most: int, side: int | None = None) -> Picture:
    """A picture's file as at most `most` bytes of the page.

    side: pixels a side, at most. Raises OSError or ValueError if it cannot be read, and if it is too large to decode.
    """
    image, width, height = _decoded(path, side)
    raw = most * 3 // 4 - 64  # base64 has four characters for three bytes
    coded, kind = _png(image), "png"
    scale, quality = image.width / width, ""
    while len(coded) > raw:
        if quality:  # a smaller one, as coarser ones are no longer good to look at
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
    """What `read` gives, and ''; or None, and why there is none: a stranger's file may be wrong in any way."""
    try:
        return read(path, most), ""
    except Exception as error:  # so may remote storage
        return None, f"cannot be shown: {first_line(error)}"


def _decoded(path: Path, side: int | None) -> tuple[Image.Image, int, int]:
    """The picture without transparency, at most `side` pixels a side, and the width and height of the file."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the number of pixels is checked here
        try:
            opened = Image.open(file)
            width, height = opened.size
            if width * height > _MOST_PIXELS:
                raise ValueError(f"it has {width}×{height} pixels")
            image = opened.convert("L" if opened.mode in ("1", "L") else "RGB")
        except (Image.DecompressionBombError, SyntaxError) as error:  # Pillow's, of files that are cut off or worse
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
    """Pictures of training (step, file) as at most `most` bytes of the page.

    Of too many, some at even distances, with the first and the last. Files that cannot be read are left out.
    """
    chosen = evenly(files, FRAMES)
    # What a frame takes is not known before it is encoded: the last one, of a trained model, has most detail.
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
