"""Letters drawn in matplotlib's fonts and processed like scikit-learn's digits: out-of-distribution images for digits.

A letter fills the height of a 32×32 bitmap, whose white pixels are counted in blocks of 4×4, so that size, sharpness
and range match the digits. Letters that look like a digit are left out (B, G, I, L, O, Q, S, Z). Each letter is rotated
by up to 15° and narrowed at random.
"""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS = "ACDEFHJKMNPRTUVWXY"
_FAMILIES = ("Sans", "SansMono", "Serif")
_SIDE, _BLOCK = 32, 4
_CANVAS = 128  # pixels per side of the canvas that a letter is drawn on and cut out of


def draw(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures, [count, 8, 8] of whole numbers from 0 to 16, and their indices [count] into `LETTERS`.

    A larger count begins with the same pictures.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / f"DejaVu{family}-Bold.ttf"), 64) for family in _FAMILIES]
    rng = np.random.default_rng(seed)
    pictures, labels = [], []
    for _ in range(count):
        label, font = rng.integers(len(LETTERS)), fonts[rng.integers(len(fonts))]
        pictures.append(_one(LETTERS[label], font, *rng.uniform((-15, 0.6), (15, 1))))
        labels.append(label)
    return np.stack(pictures), np.array(labels)


def _one(letter: str, font: ImageFont.FreeTypeFont, angle: float, squeeze: float) -> np.ndarray:
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    ImageDraw.Draw(canvas).text((_CANVAS / 2, _CANVAS / 2), letter, 255, font, anchor="mm")
    canvas = canvas.rotate(angle, Image.Resampling.BICUBIC)
    cut = canvas.crop(canvas.getbbox())
    width = min(_SIDE, max(1, round(squeeze * cut.width * _SIDE / cut.height)))
    bitmap = Image.new("L", (_SIDE, _SIDE))
    bitmap.paste(cut.resize((width, _SIDE), Image.Resampling.BICUBIC), ((_SIDE - width) // 2, 0))
    white, blocks = np.asarray(bitmap) >= 128, _SIDE // _BLOCK
    return white.reshape(blocks, _BLOCK, blocks, _BLOCK).sum((1, 3))
