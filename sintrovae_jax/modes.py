"""The modes that use a trained model: eval, sample, reconstruct, interpolate, translate."""

import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sintrovae_jax import files, inference, parallel, results
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import evaluation, scoring
from sintrovae_jax.plots import pictures

log = logging.getLogger(__name__)


class Ends(NamedTuple):
    """What `interpolate` and `translate` were told: two image files or test indices, or "" for some test images; the
    path of an interpolation.
    """

    a: str = ""
    b: str = ""
    path: str = "linear"


def run(mode: str, config, workdir: Path, ends: Ends = Ends()) -> None:  # noqa: B008
    """Loads the workdir's newest checkpoint and does what the mode says.

    The config of the command line may ask for other evaluators or sample counts than training did. Raises `UserError`
    if there is no checkpoint.
    """
    model = dataclasses.replace(inference.load(workdir), config=config)
    if parallel.is_main():
        from sintrovae_jax.data import pipeline  # TensorFlow, only now that there is something to do

        source = pipeline.build(config.data)
        model = evaluation.prepared(model, source)
        source = scoring.source_of(model, source)
        if mode in _OF_TWO:
            path = _OF_TWO[mode](model, source, workdir / pictures.FOLDER, ends)
        else:
            path = _MODES[mode](model, source, workdir)
        log.info("wrote %s", path)
    parallel.from_main(0)  # the others wait: on their way out they would give it up after five minutes


def _eval(model, source, workdir):
    """Scores the model again; seconds and rate of its training stay in results.json."""
    before = results.read(workdir)
    kept = {k: before[k] for k in ("seconds", "examples_per_second") if k in before}
    figures = evaluation.figures_of(model, source, workdir) | {"step": model.step} | kept
    return results.write(workdir, figures | evaluation.conditions(model, source))


def _sample(model, source, workdir):
    """samples.npz (x, z) with `eval.num_samples` samples, and a picture of the first."""
    config = model.config
    z = np.asarray(model.prior(config.seed, config.eval.num_samples))
    x = model.sample(config.seed, len(z), config.eval.truncation)
    with files.replacing(workdir / "samples.npz") as beside:
        np.savez(beside, x=np.asarray(x), z=z)
    if model.stage is not None:
        pictures.mixing(model, source, workdir / pictures.FOLDER)
    return pictures.samples(model, source, workdir / pictures.FOLDER, truncation=config.eval.truncation)


def _reconstruct(model, source, workdir):
    if model.stage is not None:
        pictures.resolutions(model, source, workdir / pictures.FOLDER)
    return pictures.reconstructions(model, source, workdir / pictures.FOLDER)


def _interpolate(model, source, folder, ends):
    """interpolations.png between test images, or interpolation.png between the two that were named."""
    if not (ends.a or ends.b):
        return pictures.interpolations(model, source, folder, path=ends.path)
    a, b = (_example(end, model, source)[None] for end in (ends.a, ends.b))
    return pictures.interpolation(model, source, a, b, folder / "interpolation.png", ends.path)


def _translate(model, source, folder, ends):
    """translations.png of test images, or translation.png: both classes with both contents of two that were named."""
    if not (ends.a or ends.b):
        return pictures.translations(model, source, folder)
    both = np.stack([_example(end, model, source) for end in (ends.a, ends.b)])
    return pictures.translation(model, both, both, folder / "translation.png")


def _example(end: str, model, source) -> np.ndarray:
    """A test example by its index, or an image file as the model sees it."""
    from sintrovae_jax.data import images, sources

    if end.isdigit():
        x = source.test(int(end) + 1, model.config.seed)
        if len(x) <= int(end):
            raise UserError(f"there is no test example {end}: there are {len(x)}, from 0")
        return x[int(end)]
    if not model.config.data.image_size:
        raise UserError(f"--a and --b of a model of points are indices of test points, not {end!r}")
    try:
        x = images.decode(Path(end).read_bytes(), images.read_format(model.config.data))
        return sources.as_float(np.asarray(sources.shrink(x, model.shape[0])))  # a model may not be grown yet
    except (OSError, ValueError) as error:
        raise UserError(f"{end!r} is no image that can be read, and no index of a test image: {error}") from None


_OF_TWO = {"interpolate": _interpolate, "translate": _translate}
_MODES = {"eval": _eval, "sample": _sample, "reconstruct": _reconstruct}
