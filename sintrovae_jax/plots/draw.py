"""Draws arrays to PNG files. Knows nothing about models or data.

Figures are made without pyplot, because its backend is the caller's choice.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from sintrovae_jax import files

_SMALLEST = 48  # pixels: smaller images are enlarged, so that they can be seen
_VIEW = 30, 25  # the direction from which clouds are seen, in degrees: to the right, and above


def grid(path: Path, images: np.ndarray, columns: int) -> None:
    """Draws images [N, H, W, 1 or 3] in [0, 1] (clipped) as a table, row by row, one pixel apart."""
    images = np.asarray(images, np.float32)
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    canvas = np.ones((rows, height + 1, columns, width + 1, channels), np.float32)
    for i, image in enumerate(images):
        canvas[i // columns, :height, i % columns, :width] = image
    canvas = canvas.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    pixels = (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    picture = Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)
    enlarge = -(-_SMALLEST // height)
    with files.storing(path), files.replacing(path) as temporary:
        picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST).save(temporary)


def clouds(path: Path, clouds: np.ndarray, columns: int) -> None:
    """Draws clouds [N, points, 3] as a table, row by row, seen from the front, the right and above, y upwards.

    Near points are bright. All clouds have the same scale, and points far outside are cut off.
    """
    x, y, z = np.moveaxis(np.asarray(clouds, np.float32), -1, 0)
    turn, tilt = np.radians(_VIEW)
    x, z = np.cos(turn) * x - np.sin(turn) * z, np.sin(turn) * x + np.cos(turn) * z
    y, z = np.cos(tilt) * y - np.sin(tilt) * z, np.sin(tilt) * y + np.cos(tilt) * z
    reach = max(np.percentile(np.sqrt(x**2 + y**2 + z**2), 99.5), 1e-6)
    rows, cell = -(-len(x) // columns), np.arange(len(x))
    seen = (np.abs(x) < 1.2 * reach) & (np.abs(y) < 1.2 * reach)
    across, down = (v[:, None] * 2.2 * reach for v in (cell % columns, cell // columns))
    figure = Figure(figsize=(1.3 * columns, 1.3 * rows))
    axis = figure.add_axes((0, 0, 1, 1))
    order = np.argsort(z[seen])  # near points over far ones
    places = ((x + across)[seen][order], (y - down)[seen][order])
    size = 5 * np.sqrt(512 / x.shape[1])
    axis.scatter(*places, s=size, c=z[seen][order], cmap="viridis", vmin=-reach, vmax=reach, linewidths=0)
    xlim, ylim = ((-1.1, 2.2 * columns - 1.1), (1.1 - 2.2 * rows, 1.1))
    axis.set(xlim=np.multiply(xlim, reach), ylim=np.multiply(ylim, reach), aspect="equal")
    axis.axis("off")
    _save(figure, path)


def _points(axis, points, title, half_range):
    axis.scatter(points[:, 0], points[:, 1], s=2, linewidths=0)
    axis.set(title=title, xlim=(-half_range, half_range), ylim=(-half_range, half_range), aspect="equal")


def scatter(path: Path, data: np.ndarray, samples: np.ndarray, half_range: float) -> None:
    """Two panels of points [N, 2]: data and samples, over [-half_range, half_range]²."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    _points(axes[0], data, "data", half_range)
    _points(axes[1], samples, "samples", half_range)
    _save(figure, path)


def clusters(path: Path, z: np.ndarray, samples: np.ndarray, cluster: np.ndarray, half_range: float) -> None:
    """Two panels coloured by cluster [N]: the first two dimensions of latents z [N, Z], and samples [N, 2]."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    cyclic = cluster % 20  # of the colours of tab20
    for axis, points, title in ((axes[0], z[:, :2], "latents by component"), (axes[1], samples, "their samples")):
        axis.scatter(points[:, 0], points[:, -1], s=2, linewidths=0, c=cyclic, cmap="tab20", vmin=0, vmax=19)
        axis.set(title=title, aspect="equal")
    axes[1].set(xlim=(-half_range, half_range), ylim=(-half_range, half_range))
    _save(figure, path)


def density(path: Path, data: np.ndarray, samples: np.ndarray, energy: np.ndarray, half_range: float) -> None:
    """Three panels: data points, samples [N, 2], and exp(-energy) on a grid [rows = y, columns = x], y upwards."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    _points(axes[0], data, "data", half_range)
    _points(axes[1], samples, "samples", half_range)
    extent = (-half_range, half_range, -half_range, half_range)
    axes[2].imshow(np.exp(-energy), origin="lower", extent=extent, cmap="viridis")
    axes[2].set(title="exp(ELBO)")
    _save(figure, path)


def histograms(path: Path, pairs: dict[str, tuple[np.ndarray, np.ndarray]], names: tuple[str, str]) -> None:
    """A panel for each {title: (values [N], values [M])}: the histograms of both in the same axes.

    The bins leave out the outermost hundredth of either, so that one extreme value does not flatten the rest. Values
    that are not finite are left out.
    """
    figure = Figure(figsize=(4 * len(pairs), 3.2), layout="constrained")
    axes = figure.subplots(1, len(pairs), squeeze=False)
    for axis, (title, values) in zip(axes[0], pairs.items(), strict=True):
        shown = {name: v[np.isfinite(v)] for name, v in zip(names, values, strict=True) if np.isfinite(v).any()}
        ends = np.concatenate([np.percentile(v, (1, 99)) for v in shown.values()] or [np.zeros(1)])
        bins = np.linspace(ends.min(), ends.max() + 1e-6, 51)
        for name, v in shown.items():
            axis.hist(v.clip(bins[0], bins[-1]), bins, density=True, alpha=0.6, label=name)
        axis.set(title=title, yticks=[])
        if shown:
            axis.legend()
    _save(figure, path)


def _save(figure, path):
    with files.storing(path), files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)
