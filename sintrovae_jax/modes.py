"""The modes that use a trained model: eval, sample, reconstruct, interpolate."""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from sintrovae_jax import evaluate, files, inference, parallel, pictures

log = logging.getLogger(__name__)


def run(mode: str, config, workdir: Path) -> None:
    """Loads the workdir's newest checkpoint and does what the mode says.

    The config of the command line may ask for other evaluators or sample counts than training did. Raises `UserError`
    if there is no checkpoint.
    """
    model = dataclasses.replace(inference.load(workdir), config=config)
    if parallel.is_main():
        from sintrovae_jax import data  # TensorFlow, only now that there is something to do

        _MODES[mode](model, data.build(config.data), workdir)


def _eval(model, source, workdir):
    """Scores the model again; seconds and rate of its training stay in results.json."""
    results = evaluate.read_results(workdir)
    kept = {k: results[k] for k in ("seconds", "examples_per_second") if k in results}
    evaluate.write_results(workdir, evaluate.figures_of(model, source, workdir) | {"step": model.step} | kept)


def _sample(model, source, workdir):
    """samples.npz (x, z) with `eval.num_samples` samples, and a picture of the first."""
    z = np.asarray(model.prior(model.config.seed, model.config.eval.num_samples))
    with files.replacing(workdir / "samples.npz") as beside:
        np.savez(beside, x=np.asarray(model.decode(z)), z=z)
    _draw(pictures.samples)(model, source, workdir)


def _draw(picture):
    def mode(model, source, workdir):
        picture(model, source, workdir / pictures.FOLDER)
        log.info("wrote %s", workdir / pictures.FOLDER / f"{picture.__name__}.png")

    return mode


_MODES = {
    "eval": _eval,
    "sample": _sample,
    "reconstruct": _draw(pictures.reconstructions),
    "interpolate": _draw(pictures.interpolations),
}
