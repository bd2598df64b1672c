"""The pictures of a model: which arrays to draw, and under what name in the workdir's figures folder."""

from pathlib import Path

import numpy as np

from sintrovae_jax import figures
from sintrovae_jax.evaluators import HALF_RANGE
from sintrovae_jax.inference import Model

FOLDER = "figures"
_ROWS, _COLUMNS = 10, 10  # of a picture; reconstructions come in pairs of rows
_POINTS = 1024


def samples(model: Model, source, folder: Path, suffix: str = "") -> Path:
    """samples.png: decoded prior samples; for points, beside data."""
    path = folder / f"samples{suffix}.png"
    if model.config.data.image_size:
        figures.grid(path, np.asarray(model.sample(model.config.seed, _ROWS * _COLUMNS)), _COLUMNS)
    else:
        _scatter(path, model, source, np.asarray(model.sample(model.config.seed, _POINTS)))
    return path


def reconstructions(model: Model, source, folder: Path, suffix: str = "") -> Path:
    """reconstructions.png: rows of test images, each above the row of its reconstructions; for points, beside data."""
    path = folder / f"reconstructions{suffix}.png"
    if model.config.data.image_size:
        x = source.test(_ROWS // 2 * _COLUMNS, model.config.seed)
        columns = min(_COLUMNS, len(x))
        x = x[: len(x) // columns * columns]  # whole rows
        pairs = np.stack([x, np.asarray(model.reconstruct(x))]).reshape(2, -1, columns, *model.shape)
        figures.grid(path, pairs.swapaxes(0, 1).reshape(-1, *model.shape), columns)
    else:
        x = source.test(_POINTS, model.config.seed)
        _scatter(path, model, source, np.asarray(model.reconstruct(x)))
    return path


def interpolations(model: Model, source, folder: Path, suffix: str = "", spherical: bool = False) -> Path:
    """interpolations.png: from one test image to another through latent space; for points, the decoded paths."""
    pairs = _ROWS if model.config.data.image_size else _POINTS // 32
    x = source.test(2 * pairs, model.config.seed)
    ends = np.roll(x, -1, axis=0)  # an odd one out goes to the first
    return interpolation(model, source, x[0::2], ends[0::2], folder / f"interpolations{suffix}.png", spherical)


def interpolation(model: Model, source, a: np.ndarray, b: np.ndarray, path: Path, spherical: bool = False) -> Path:
    """Rows of images, each from one of a [N, *shape] to its partner in b; for points, the decoded paths."""
    steps = _COLUMNS if model.config.data.image_size else 32
    between = np.asarray(model.interpolate(a, b, steps, spherical)).reshape(-1, *model.shape)
    if model.config.data.image_size:
        figures.grid(path, between, _COLUMNS)
    else:
        _scatter(path, model, source, between)
    return path


def _scatter(path, model, source, points):
    half_range = HALF_RANGE[model.config.data.source]
    figures.scatter(path, source.test(_POINTS, model.config.seed), points, half_range)


def write_all(model: Model, source, workdir: Path, suffix: str = "") -> list[Path]:
    """All three, to WORKDIR/figures."""
    return [draw(model, source, workdir / FOLDER, suffix) for draw in (samples, reconstructions, interpolations)]
