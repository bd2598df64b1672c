"""The modes that use a trained model: eval, sample, reconstruct, interpolate, and its family's own modes."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import config as configs
from sintrovae_jax import files, inference, parallel, workdirs
from sintrovae_jax.data import examples
from sintrovae_jax.data.source import Source, check_labels, of_labels
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import evaluation, scoring
from sintrovae_jax.plots import figures

log = logging.getLogger(__name__)


class Ends(NamedTuple):
    """The arguments of `interpolate` and `translate`.

    a, b: two image files or test indices; "": some test images. path: of an interpolation. classes: for conditional
    models, the labels to sample, or the labels of both ends.
    """

    a: str = ""
    b: str = ""
    path: str = "linear"
    classes: tuple[int, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """Both ends, or an empty tuple if none is given."""
        return (self.a, self.b) if self.a or self.b else ()


class _Lazy:
    """A source that is built when it is first used, because many modes need no data."""

    def __init__(self, build: Callable[[], Source]) -> None:
        self._build = functools.cache(build)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._build(), name)


def _lazy(build: Callable[[], Source]) -> Source:
    return cast(Source, _Lazy(build))


def run(
    mode: str,
    config: ConfigDict,
    workdir: Path,
    ends: Ends = Ends(),  # noqa: B008
    step: int | str | None = None,
) -> None:
    """Loads a checkpoint of a workdir and runs the mode.

    The command line's config may name other evaluators or sample counts than the config of training. step: as in
    `inference.load`. Raises `UserError` if there is no such checkpoint, or if the mode needs data that are missing or
    are not the data of training (`config.refuse_other_data`).
    """
    model = dataclasses.replace(inference.load(workdir, step, batch_norm="running"), config=config)
    if parallel.is_main():
        build = functools.partial(_source, config, workdir)
        source = build() if mode == "eval" else _lazy(build)  # eval always needs it, and should fail early
        model = evaluation.prepared(model, source, workdir)
        source = _lazy(functools.partial(scoring.source_of, model, source))
        for path in _written(mode, model, source, workdir, ends):
            log.info("wrote %s", path)
    parallel.from_main(0)  # the others wait: at exit they would give up on the main process after 5 minutes


def _source(config: ConfigDict, workdir: Path) -> Source:
    from sintrovae_jax.data import pipeline  # TensorFlow

    source = pipeline.build(config.data)
    configs.refuse_other_data(config, source.identity, workdir)
    check_labels(config, source)
    return source


def _written(mode, model, source, workdir, ends):
    folder, common = workdir / workdirs.FIGURES, []
    if mode == "interpolate":
        common = [_interpolate(model, source, workdir, ends)]
    elif ends.named:
        a, b = (_example(end, model, source) for end in ends.named)
        return [figures.of_two(model, a, b, folder, mode)]
    elif mode == "sample":
        common = [_sample(model, source, workdir, ends.classes)]
    elif mode in _MODES:
        common = [_MODES[mode](model, source, workdir)]
    return common + figures.of_family(model, source, folder, mode=mode)


def _eval(model, source, workdir):
    """Evaluates the model again. results.json keeps the seconds and the rate of training."""
    before = workdirs.read_results(workdir)
    kept: dict[str, Any] = {k: before[k] for k in ("seconds", "examples_per_second") if k in before}
    return evaluation.write_results(model, source, workdir, evaluation.metrics_of(model, source, workdir), kept)


def _sample(model, source, workdir, classes):
    """Writes `eval.num_samples` samples to samples.npz (x, z and, for conditional models, labels), and a figure.

    classes: the labels to sample, in turn; () for all labels.
    """
    config = model.config
    z = np.asarray(model.prior(config.seed, config.eval.num_samples))
    labels = np.resize(np.array(classes, np.int32), len(z)) if classes else model.even_labels(len(z))
    known: dict[str, Any] = {} if labels is None else {"labels": labels}
    x = model.sample(config.seed, len(z), config.eval.truncation, labels)
    path = workdir / workdirs.SAMPLES
    with files.storing(path), files.replacing(path) as temporary:
        np.savez(temporary, x=np.asarray(x), z=z, **known)
    folder = workdir / workdirs.FIGURES
    return figures.samples(model, source, folder, truncation=config.eval.truncation, classes=classes)


def _reconstruct(model, source, workdir):
    return figures.reconstructions(model, source, workdir / workdirs.FIGURES)


def _interpolate(model, source, workdir, ends):
    """Writes interpolations.png between test images, or interpolation.png between the two given images."""
    folder = workdir / workdirs.FIGURES
    if not ends.named:
        return figures.interpolations(model, source, folder, path=ends.path)
    labels = _labels(model, source, ends)
    a, b = (_example(end, model, source)[None] for end in ends.named)
    return figures.interpolation(model, source, a, b, folder / "interpolation.png", ends.path, labels)


def _labels(model, source, ends):
    """The labels [1] of both ends, from --class or the test set; None for each if the model takes no labels."""
    if ends.classes:
        return tuple(np.array([label], np.int32) for label in ends.classes)
    if not model.config.model.classes:
        return None, None
    if not all(map(_is_index, ends.named)):
        raise UserError("of an image file the label is not known: add --class A,B, the labels of --a and --b")
    test_labels = of_labels(source).labels[1]
    return tuple(test_labels[int(end) : int(end) + 1] for end in ends.named)


def _is_index(end: str) -> bool:
    return end.isascii() and end.isdigit()


def _example(end: str, model: inference.Model, source: Source) -> np.ndarray:
    """A test example by its index, or an image file as the model sees it."""
    from sintrovae_jax.data import images, readers, sources  # TensorFlow

    if _is_index(end):
        x = source.test(int(end) + 1, model.config.seed)
        if len(x) <= int(end):
            raise UserError(f"there is no test example {end}: there are {len(x)}, from 0")
        return x[int(end)]
    kind = examples.of(model.config.data).kind
    if kind != "images":
        raise UserError(f"--a and --b of a model of {kind} are indices of test {kind}, not {end!r}")
    form = images.read_format(model.config.data)
    x = np.empty((1, *form.shape), np.uint8)
    for problem in readers.Readers(form, 1).read([files.resolved(end)], x).values():
        raise UserError(f"{end!r} is no image that can be read, and no index of a test image: {problem}")
    return sources.as_float(np.asarray(sources.shrink(x[0], model.shape[0])))  # it may not have grown fully


_MODES = {"eval": _eval, "reconstruct": _reconstruct}
