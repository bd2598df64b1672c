"""The figures of a model: the arrays to draw, and their names in the workdir's figures folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sintrovae_jax import models, workdirs
from sintrovae_jax.data import examples
from sintrovae_jax.data.source import Source, labels_of_test
from sintrovae_jax.inference import Model
from sintrovae_jax.plots import draw

_ROWS, _COLUMNS = 10, 10  # of a figure; reconstructions come in pairs of rows
_CLASSES = 100  # the most rows of samples of a conditional model
_POINTS = 1024


def samples(
    model: Model,
    source: Source,
    folder: Path,
    suffix: str = "",
    truncation: float = 1.0,
    classes: Sequence[int] = (),
) -> Path:
    """samples.png: decoded prior samples; for points, next to data.

    For a conditional model, a row for each of these classes (default: all, at most 100) and a column for each latent.
    """
    path = folder / f"samples{suffix}.png"
    if model.config.model.classes:
        rows = np.array(classes or range(min(model.config.model.classes, _CLASSES)), np.int32)
        z = np.tile(model.prior(model.config.seed, _COLUMNS), (len(rows), 1))
        images = model.decode(z, role="prior", labels=rows.repeat(_COLUMNS))
        _grid(model)(path, np.asarray(images), _COLUMNS)
    elif _images(model):
        _grid(model)(path, np.asarray(model.sample(model.config.seed, _ROWS * _COLUMNS, truncation)), _COLUMNS)
    else:
        _scatter(path, model, source, np.asarray(model.sample(model.config.seed, _POINTS)))
    return path


def reconstructions(model: Model, source: Source, folder: Path, suffix: str = "") -> Path:
    """reconstructions.png: rows of test images, each above the row of its reconstructions; for points, next to data."""
    path = folder / f"reconstructions{suffix}.png"
    if _images(model):
        x = source.test(_ROWS // 2 * _COLUMNS, model.config.seed)
        columns = min(_COLUMNS, len(x))
        x = x[: len(x) // columns * columns]  # whole rows
        labels = labels_of_test(model.config, source, len(x))
        pairs = np.stack([x, np.asarray(model.reconstruct(x, labels))]).reshape(2, -1, columns, *model.shape)
        _grid(model)(path, pairs.swapaxes(0, 1).reshape(-1, *model.shape), columns)
    else:
        x = source.test(_POINTS, model.config.seed)
        _scatter(path, model, source, np.asarray(model.reconstruct(x)))
    return path


def interpolations(model: Model, source: Source, folder: Path, suffix: str = "", path: str = "linear") -> Path:
    """interpolations.png: from one test image to another through latent space; for points, the decoded paths."""
    pairs = _ROWS if _images(model) else _POINTS // 32
    x = source.test(2 * pairs, model.config.seed)
    ends = np.roll(x, -1, axis=0)  # with an odd number, the last one's partner is the first
    known = labels_of_test(model.config, source, len(x))
    labels = (None, None) if known is None else (known[0::2], np.roll(known, -1)[0::2])
    return interpolation(model, source, x[0::2], ends[0::2], folder / f"interpolations{suffix}.png", path, labels)


def interpolation(
    model: Model,
    source: Source,
    a: np.ndarray,
    b: np.ndarray,
    file: Path,
    path: str = "linear",
    labels: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> Path:
    """Rows of images, each from an example in a [N, *shape] to its partner in b; for points, the decoded paths.

    labels: the labels of a and of b, for a conditional model.
    """
    steps = _COLUMNS if _images(model) else 32
    between = np.asarray(model.interpolate(a, b, steps, path, labels)).reshape(-1, *model.shape)
    if _images(model):
        _grid(model)(file, between, _COLUMNS)
    else:
        _scatter(file, model, source, between)
    return file


def _images(model):
    """Whether each example is drawn as its own picture: an image or a cloud, not a point."""
    return examples.of(model.config.data).kind != "points"


def _grid(model):
    return draw.clouds if examples.of(model.config.data).kind == "clouds" else draw.grid


def _scatter(path, model, source, points):
    draw.scatter(path, source.test(_POINTS, model.config.seed), points, _half_range(model))


def _half_range(model):
    return examples.of(model.config.data).half_range


def components(model: Model, source: Source, folder: Path, suffix: str = "") -> Path:
    """components.png: samples of a learnt prior's components, a row for each of the heaviest; for points, samples of
    all components, coloured by component.
    """
    path, mixture = folder / f"components{suffix}.png", model.mixture
    assert mixture is not None
    heaviest = np.argsort(-np.asarray(mixture.logits), kind="stable")
    if not _images(model):
        points = model.prior(model.config.seed, _POINTS)
        component = np.asarray(mixture.responsibilities(points)).argmax(1)
        samples = np.asarray(model.decode(points, role="prior"))
        draw.clusters(path, np.asarray(points), samples, component, _half_range(model))
        return path
    z = np.concatenate([model.prior(model.config.seed, _COLUMNS, int(k)) for k in heaviest[:_ROWS]])
    labels = model.even_labels(_COLUMNS)
    labels = None if labels is None else np.tile(labels, len(z) // _COLUMNS)
    _grid(model)(path, np.asarray(model.decode(z, role="prior", labels=labels)), _COLUMNS)
    return path


def of_family(model: Model, source: Source, folder: Path, suffix: str = "", mode: str = "") -> list[Path]:
    """NAME.png for each figure that only the model's family has; with a mode, only the figures of this mode."""
    out = []
    for name, figure in models.family_of(model.config.model).figures.items():
        if mode in ("", figure.mode):
            out.append(folder / f"{name}{suffix}.png")
            draw.grid(out[-1], *figure.draw(model, source))
    return out


def of_two(model: Model, a: np.ndarray, b: np.ndarray, folder: Path, mode: str) -> Path:
    """The figure that this mode of the model's family draws from two images [*shape]."""
    figure = models.family_of(model.config.model).figures_of_two[mode]
    path = folder / f"{figure.name}.png"
    draw.grid(path, *figure.draw(model, a, b))
    return path


def write_all(model: Model, source: Source, workdir: Path, suffix: str = "") -> list[Path]:
    """Writes all figures of the model to WORKDIR/figures."""
    folder = workdir / workdirs.FIGURES
    learnt = () if model.mixture is None else (components,)
    common = [figure(model, source, folder, suffix) for figure in (samples, reconstructions, interpolations, *learnt)]
    return common + of_family(model, source, folder, suffix)
