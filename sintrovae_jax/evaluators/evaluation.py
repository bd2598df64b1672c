"""Running the evaluators that a config names."""

import logging
from pathlib import Path
from typing import Any

from sintrovae_jax import cancellation, evaluators, seeds, standing, workdirs
from sintrovae_jax.data.source import Source
from sintrovae_jax.evaluators.scoring import Scoring
from sintrovae_jax.inference import Model
from sintrovae_jax.parallel import Shard

log = logging.getLogger(__name__)


def metrics_of(model: Model, source: Source, workdir: Path, kept: dict[Any, Any] | None = None) -> dict[str, Any]:
    """The metrics of every evaluator in `config.eval.evaluators`, and texts that say what they depend on.

    Writes figures to WORKDIR/figures. kept: shared by the evaluations of one run (`Scoring`).
    """
    scoring = Scoring(model, source, workdir / workdirs.FIGURES, {} if kept is None else kept)
    out: dict[str, Any] = {}
    for name, evaluator in zip(evaluators.names(model.config), evaluators.chosen(model.config), strict=True):
        cancellation.check()
        log.info("evaluating: %s", name)
        out |= evaluator.evaluate(scoring)
    if out:
        log.info("evaluation at step %d: %s", model.step, "  ".join(f"{k} {v:.4g}" for k, v in numbers(out).items()))
    return out


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """The results that are numbers."""
    return {k: v for k, v in results.items() if not isinstance(v, str)}


def prepared(model: Model, source: Source, workdir: Path | None = None) -> Model:
    """The model for evaluation and figures, with the BatchNorm statistics that `config.eval.batch_norm` names.

    model: a model with running averages. workdir: where standing statistics are kept; they are estimated from the
    source only if it has none.
    """
    config = model.config
    if config.eval.batch_norm == "running" or not standing.has_batch_norm(model):
        return model
    kept = standing.read(model, workdir, config.eval.standing_batches) if workdir else None
    if kept:
        return kept
    from sintrovae_jax.data import pipeline  # TensorFlow

    size = config.train.batch_size
    steps = {"start": 0, "stop": config.eval.standing_batches, "substeps": 1, "shard": Shard(size, 0, 1, size)}
    labels = config.model.classes > 0
    batches = pipeline.batches(source, config.data, seed=config.seed, labels=labels, **steps)
    real = ({name: values[0, 0] for name, values in batch.items()} for batch in batches)
    model = standing.estimate(model, real, seeds.key(config.seed))
    if workdir:
        standing.write(model, workdir)
    return model


def write_results(
    model: Model, source: Source, workdir: Path, metrics: dict[str, Any], training: dict[str, Any]
) -> Path:
    """Writes results.json: the metrics, the facts that all of them depend on, and the seconds and rate of training.

    These facts are the step, the kind of BatchNorm statistics, and the files that could not be read.
    """
    results = metrics | {"step": model.step} | training
    if standing.has_batch_norm(model):
        results["batch_norm"] = model.batch_norm
    if source.skipped:
        results |= {"skipped": len(source.skipped), "skipped_files": sorted(source.skipped)}
    return workdirs.write_results(workdir, results)
