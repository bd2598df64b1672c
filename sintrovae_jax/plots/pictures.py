"""The pictures of a model: which arrays to draw, and under what name in the workdir's figures folder."""

import dataclasses
from pathlib import Path

import numpy as np

from sintrovae_jax.evaluators import HALF_RANGE
from sintrovae_jax.inference import Model
from sintrovae_jax.models import Stage
from sintrovae_jax.models.convolution import pool
from sintrovae_jax.plots import draw

FOLDER = "figures"
_ROWS, _COLUMNS = 10, 10  # of a picture; reconstructions come in pairs of rows
_POINTS = 1024
_MIXED = 8  # rows and columns of the table of mixed styles


def samples(model: Model, source, folder: Path, suffix: str = "", truncation: float = 1.0) -> Path:
    """samples.png: decoded prior samples; for points, beside data."""
    path = folder / f"samples{suffix}.png"
    if model.config.data.image_size:
        draw.grid(path, np.asarray(model.sample(model.config.seed, _ROWS * _COLUMNS, truncation)), _COLUMNS)
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
        draw.grid(path, pairs.swapaxes(0, 1).reshape(-1, *model.shape), columns)
    else:
        x = source.test(_POINTS, model.config.seed)
        _scatter(path, model, source, np.asarray(model.reconstruct(x)))
    return path


def interpolations(model: Model, source, folder: Path, suffix: str = "", path: str = "linear") -> Path:
    """interpolations.png: from one test image to another through latent space; for points, the decoded paths."""
    pairs = _ROWS if model.config.data.image_size else _POINTS // 32
    x = source.test(2 * pairs, model.config.seed)
    ends = np.roll(x, -1, axis=0)  # an odd one out goes to the first
    return interpolation(model, source, x[0::2], ends[0::2], folder / f"interpolations{suffix}.png", path)


def interpolation(model: Model, source, a: np.ndarray, b: np.ndarray, file: Path, path: str = "linear") -> Path:
    """Rows of images, each from one of a [N, *shape] to its partner in b; for points, the decoded paths."""
    steps = _COLUMNS if model.config.data.image_size else 32
    between = np.asarray(model.interpolate(a, b, steps, path)).reshape(-1, *model.shape)
    if model.config.data.image_size:
        draw.grid(file, between, _COLUMNS)
    else:
        _scatter(file, model, source, between)
    return file


def mixing(model: Model, source, folder: Path, suffix: str = "") -> Path:
    """mixing.png, of style-based models: the first half of a row's layers has the row's styles, the rest the column's.

    The first row and column are the samples whose styles they are.
    """
    del source
    rows = columns = _MIXED
    z = model.prior(model.config.seed, rows + columns)
    styles = model.styles(z)
    layers = np.arange(styles.shape[1])[:, None]
    table = np.where(layers < len(layers) // 2, styles[:rows, None], styles[None, rows:])
    noise = np.arange(rows).repeat(columns)  # a row's is the same all along
    mixed = model.synthesize(table.reshape(-1, *styles.shape[1:]), noise)
    mixed = np.asarray(mixed).reshape(rows, columns, *model.shape)
    own = np.asarray(model.synthesize(styles))
    path = folder / f"mixing{suffix}.png"
    _table(path, own[rows:], own[:rows], mixed)
    return path


def resolutions(model: Model, source, folder: Path, suffix: str = "") -> Path:
    """resolutions.png, of models that grow: test images above their reconstructions, at every level so far.

    The layers to and from RGB of a lower level have not been trained since the next one was blended in.
    """
    rows, side = [], model.shape[0]
    x = source.test(_COLUMNS, model.config.seed)
    for level in range(model.stage.level, -1, -1):
        stage = model.stage if level == model.stage.level else Stage(level)
        pair = np.stack([x, dataclasses.replace(model, stage=stage).reconstruct(x)])
        rows.insert(0, pair.repeat(side // x.shape[1], 2).repeat(side // x.shape[1], 3))
        x = np.asarray(pool(x))
    path = folder / f"resolutions{suffix}.png"
    draw.grid(path, np.concatenate(rows).reshape(-1, *model.shape), len(rows[0][0]))
    return path


def translations(model: Model, source, folder: Path, suffix: str = "") -> Path:
    """translations.png, of two-encoder models: `translation` of the first test images, classes and contents from
    different ones.
    """
    x = source.test(2 * _MIXED, model.config.seed)
    half = -(-len(x) // 2)
    return translation(model, x[:half], x[-half:], folder / f"translations{suffix}.png")


def translation(model: Model, of_class: np.ndarray, of_content: np.ndarray, file: Path) -> Path:
    """A table: every image has its column's class and its row's content.

    The first row and column are the images [N, *shape], [M, *shape] that these are of.
    """
    rows, columns = len(of_content), len(of_class)
    crossed = model.translate(np.tile(of_class, (rows, 1, 1, 1)), np.repeat(of_content, columns, 0))
    table = np.asarray(crossed).reshape(rows, columns, *model.shape)
    _table(file, of_class, of_content, table)
    return file


def _table(path, top, side, inside):
    """Images inside [rows, columns, *shape] beside those of the rows, below those of the columns."""
    first = np.concatenate([np.ones((1, *top.shape[1:])), top])[None]
    table = np.concatenate([first, np.concatenate([side[:, None], inside], 1)])
    draw.grid(path, table.reshape(-1, *top.shape[1:]), len(top) + 1)


def _scatter(path, model, source, points):
    half_range = HALF_RANGE[model.config.data.source]
    draw.scatter(path, source.test(_POINTS, model.config.seed), points, half_range)


def write_all(model: Model, source, workdir: Path, suffix: str = "") -> list[Path]:
    """All that the model has, to WORKDIR/figures."""
    draws = [samples, reconstructions, interpolations]
    draws += [] if model.stage is None else [mixing, resolutions]
    draws += [translations] if model.config.model.family == "two_encoder" else []
    return [draw(model, source, workdir / FOLDER, suffix) for draw in draws]
