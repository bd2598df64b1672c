"""Decodes a picture file of any kind to an array of one size. Pillow, or simplejpeg where it is faster; no TensorFlow.

`fit` is the resize policy of `config.data` (crop, background, image_size, image_channels).
"""

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_COLOURS = {"RGB": "RGB", "L": "GRAY"}  # Pillow's names and simplejpeg's
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")


class Format(NamedTuple):
    """The format that every picture is converted to: size × size pixels, 1 or 3 channels."""

    size: int
    channels: int
    crop: bool = True
    background: tuple[int, int, int] = (255, 255, 255)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, self.channels)

    @property
    def fill(self) -> tuple[int, ...]:
        """The background in the format's channels."""
        if self.channels == 3:
            return self.background
        return tuple(Image.new("RGB", (1, 1), self.background).convert("L").tobytes())


def read_format(data: "ConfigDict") -> Format:
    """The format that `config.data` asks for."""
    return Format(data.image_size, data.image_channels, data.crop, tuple(data.background))


def decode(encoded: bytes, form: Format) -> np.ndarray:
    """The bytes of a picture file -> uint8 [size, size, channels]. Raises `ValueError` if it is damaged or incomplete.

    Takes the first frame of an animation, applies the EXIF orientation, and resizes bicubically with antialiasing.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            # A JPEG much larger than wanted is decoded at 1/2, 1/4 or 1/8, but still at least twice as large as wanted.
            picture.draft(None, (2 * form.size, 2 * form.size))
            pixels = _plain_jpeg(encoded, picture)
            if pixels is None:
                ImageOps.exif_transpose(picture, in_place=True)  # otherwise it always returns a copy
                return fit(picture, form)
            if pixels.shape == form.shape:
                return pixels
            return fit(Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]), form)
    except Exception as error:
        raise _problem(error) from error


def _plain_jpeg(encoded: bytes, picture: Image.Image) -> np.ndarray | None:
    """The pixels of an opened JPEG, as Pillow would decode them but in half the time. None if Pillow has to do it.

    That is so for anything unusual, and for damaged files, where Pillow decides whether they are readable.
    """
    if picture.format != "JPEG" or picture.mode not in _COLOURS:
        return None
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None
    width, height = picture.size
    try:
        pixels = simplejpeg.decode_jpeg(encoded, _COLOURS[picture.mode], min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


def check(encoded: bytes) -> None:
    """Raises `ValueError` if the bytes do not begin like a picture. Decodes nothing."""
    try:
        Image.open(io.BytesIO(encoded)).close()
    except Exception as error:
        raise _problem(error) from error


def _problem(error: Exception) -> ValueError:
    """What is wrong with a file, in a few words. Pillow's plugins raise all kinds of errors for damaged files."""
    if isinstance(error, UnidentifiedImageError):
        return ValueError("not a picture")
    return ValueError(str(error) or repr(error))


def fit(picture: Image.Image, form: Format) -> np.ndarray:
    """A picture of any size and mode -> uint8 [size, size, channels]."""
    mode = "RGB" if form.channels == 3 else "L"
    picture = _opaque(_eight_bits(picture), form.background)
    picture = picture if picture.mode == mode else picture.convert(mode)
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side) if form.crop else (0, 0, width, height)
    if box != (0, 0, form.size, form.size):
        picture = picture.resize((form.size, form.size), Image.Resampling.BICUBIC, box)
    return np.asarray(picture).reshape(form.shape)


def _eight_bits(picture):
    """16-bit grey ('I;16…', or 'I' in which Pillow holds it) scaled to 8; `convert` would clip it to white."""
    if not picture.mode.startswith("I"):
        return picture
    grey = np.asarray(picture).astype(np.float64)
    return Image.fromarray((grey.clip(0, 65535) / 257 + 0.5).astype(np.uint8))


def _opaque(picture, background):
    """Composites a picture with transparency, in any mode, onto the background."""
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*background, 255)), picture)
