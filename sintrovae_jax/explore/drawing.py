"""Arrays to pictures for the page: uint8 [height, width, 3]."""

import tempfile
from pathlib import Path

import numpy as np

_WIDTH, _CELL = 760, 190  # pixels: approximate width of a table, and largest width of a cell unless images are larger
_GAP = 3  # white pixels between images


def table(images: np.ndarray, columns: int) -> np.ndarray:
    """A table of images [N, H, W, 1 or 3] in [0, 1] (clipped), row by row, all enlarged by the same whole number."""
    n, height, width, channels = images.shape
    scale = max(1, min(_WIDTH // columns, _CELL) // width)
    pixels = (images.clip(0, 1) * 255 + 0.5).astype(np.uint8).repeat(scale, 1).repeat(scale, 2)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3)) if channels == 1 else pixels
    rows, down, across = -(-n // columns), height * scale + _GAP, width * scale + _GAP
    canvas = np.full((rows, down, columns, across, 3), 255, np.uint8)
    for i, image in enumerate(pixels):
        canvas[i // columns, :-_GAP, i % columns, :-_GAP] = image
    return canvas.reshape(rows * down, columns * across, 3)[:-_GAP, :-_GAP]


def heat(values: np.ndarray) -> np.ndarray:
    """Values [H, W] in [0, 1] -> colours [H, W, 3] in [0, 1]: black, red, yellow, white."""
    return np.clip(3 * values[..., None] - np.arange(3), 0, 1)


def clouds(clouds: np.ndarray, columns: int) -> np.ndarray:
    """Clouds [N, points, 3], as `plots.draw.clouds` draws them."""
    from PIL import Image

    from sintrovae_jax.plots import draw

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clouds.png")
        draw.clouds(path, clouds, columns)
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))


def density(samples: np.ndarray, energy: np.ndarray, half_range: float) -> np.ndarray:
    """Two panels over [-half_range, half_range]²: samples [N, 2], and exp(-energy) [rows = y, columns = x]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    bounds = (-half_range, half_range)
    left.scatter(*samples.T, s=4, linewidths=0)
    left.set(title="samples", xlim=bounds, ylim=bounds, aspect="equal")
    right.imshow(np.exp(-energy), origin="lower", extent=(*bounds, *bounds), cmap="viridis")
    right.set(title="exp(ELBO)")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
