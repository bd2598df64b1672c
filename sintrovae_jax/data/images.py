"""Decodes picture files of any format to arrays of one size. Uses Pillow, or simplejpeg if it is faster; no TensorFlow.

`fit` is the resize policy of `config.data` (crop, background, image_size, image_channels). Files are decoded in
processes of their own (`readers`).
"""

import io
import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_COLOURS = {"RGB": "RGB", "L": "GRAY"}  # Pillow's names and simplejpeg's
# Pillow's names of the formats that are read, and their suffixes. Files of other formats are not opened, whatever their
# suffix: Pillow would pass PostScript to Ghostscript, for example.
_KINDS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
Image.init()
FORMATS = tuple(
    kind for kind in _KINDS if kind in Image.OPEN and (kind not in ("WEBP", "AVIF") or features.check(kind.lower()))
)
SUFFIXES = tuple(itertools.chain.from_iterable(_KINDS[kind] for kind in FORMATS))
# Suffixes of other pictures: the ones that Pillow knows, and a few that it does not.
_NO_PICTURES = {".bufr", ".grib", ".h5", ".hdf", ".iim", ".mpeg", ".mpg", ".pdf", ".ps"}
_OTHERS = ".heic .heif .jxl .svg .svgz .psb .xcf .exr .hdr .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .pef .srw"
UNREAD = ({*Image.registered_extensions(), *_OTHERS.split()}) - {*SUFFIXES} - _NO_PICTURES
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")


class Format(NamedTuple):
    """The format that every picture is converted to: size × size pixels, 1 or 3 channels.

    max_pixels: files with more pixels are not decoded.
    """

    size: int
    channels: int
    crop: bool = True
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 178_956_970  # Pillow's own limit

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
    return Format(data.image_size, data.image_channels, data.crop, tuple(data.background), data.max_pixels)


def decode(encoded: bytes, form: Format) -> np.ndarray:
    """The bytes of a picture file -> uint8 [size, size, channels].

    Takes the first frame of an animation, applies the EXIF orientation, and resizes bicubically with antialiasing.
    Raises `ValueError` if the file is damaged, incomplete, in another format, or too large.
    """
    try:
        with _opened(encoded, form) as picture:
            # A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8, but at least at twice the needed size.
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
    """The pixels of an opened JPEG, as Pillow would decode them but in half the time; None if Pillow must decode it.

    Pillow decodes anything unusual, and damaged files, for which it decides whether they are readable.
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


def check(encoded: bytes, form: Format) -> None:
    """Raises `ValueError` if the bytes do not begin like a picture, or it is too large. Decodes nothing."""
    try:
        _opened(encoded, form).close()
    except Exception as error:
        raise _problem(error) from error


def looks_like_one(beginning: bytes) -> bool:
    """Whether the first 12 bytes of a file are the beginning of a common picture format."""
    return beginning.startswith(_BEGINNINGS) or beginning[8:] == b"WEBP" or beginning[4:] in (b"ftypavif", b"ftypheic")


def _opened(encoded: bytes, form: Format) -> Image.Image:
    picture = Image.open(io.BytesIO(encoded), formats=FORMATS)
    width, height = picture.size
    if width * height > form.max_pixels:
        raise ValueError(f"{width} × {height} pixels, more than data.max_pixels={form.max_pixels}")
    return picture


def _problem(error: Exception) -> ValueError:
    """Says what is wrong with a file, in a few words. Pillow's plugins raise all kinds of errors for damaged files."""
    if isinstance(error, UnidentifiedImageError):
        return ValueError("not a picture")
    if isinstance(error, MemoryError):
        return ValueError("it takes more memory than its size accounts for")
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


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scales grey of 16 bits ('I;16…', or 'I', which Pillow may use for it) or floats in [0, 1] ('F') to 8 bits.

    `convert` would clip them. Raises `ValueError` for numbers outside these ranges.
    """
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    grey = np.asarray(picture)
    low, high, most = grey.min(), grey.max(), 1 if picture.mode == "F" else 65535
    if not (low >= 0 and high <= most):
        raise ValueError(f"its numbers are from {low} to {high}, not from 0 to {most}")
    scaled = np.round(grey * np.float32(255)) if picture.mode == "F" else (grey.astype(np.int32) + 128) // 257
    return Image.fromarray(scaled.astype(np.uint8))


def _opaque(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Composites a picture with transparency, in any mode, onto the background."""
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*background, 255)), picture)
