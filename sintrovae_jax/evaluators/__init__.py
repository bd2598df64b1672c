"""The evaluators that `config.eval.evaluators` may name.

To add one, define an `Evaluator` in a module and add it to `EVALUATORS`, here or from outside the package.
"""

from typing import Any

from ml_collections import ConfigDict

from sintrovae_jax.data.source import Source
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import (
    class_accuracy,
    clouds,
    density,
    frechet,
    kid,
    latents,
    likelihood,
    ood,
    precision_recall,
    transfer,
)
from sintrovae_jax.evaluators.evaluator import Evaluator

EVALUATORS: dict[str, Evaluator] = {
    "density": density.EVALUATOR,
    "clouds": clouds.EVALUATOR,
    "latents": latents.EVALUATOR,
    "fid": frechet.EVALUATOR,
    "kid": kid.EVALUATOR,
    "precision_recall": precision_recall.EVALUATOR,
    "class_accuracy": class_accuracy.EVALUATOR,
    "likelihood": likelihood.EVALUATOR,
    "ood": ood.EVALUATOR,
    "transfer": transfer.EVALUATOR,
}


def names(config: ConfigDict) -> list[str]:
    """The names of the config's evaluators; the command line may give them as fid,kid,ood."""
    return [name.strip() for item in config.eval.evaluators for name in str(item).split(",") if name.strip()]


def chosen(config: ConfigDict) -> list[Evaluator]:
    """The evaluators that the config names. Raises `UserError` for one that does not exist."""
    for name in names(config):
        if name not in EVALUATORS:
            raise UserError(f"eval.evaluators: {name!r} is none of {', '.join(EVALUATORS)}")
    return [EVALUATORS[name] for name in names(config)]


def check(config: ConfigDict) -> None:
    """Raises `UserError` if the config does not suit an evaluator, or if none has the metric `checkpoint.best`."""
    for evaluator in chosen(config):
        evaluator.check(config)
    metrics = [metric for evaluator in chosen(config) for metric in evaluator.metrics(config)]
    if config.checkpoint.best and config.checkpoint.best not in metrics:
        known = ", ".join(metrics) or "none"
        raise UserError(f"checkpoint.best={config.checkpoint.best!r} is no metric of eval.evaluators ({known})")


def check_source(config: ConfigDict, source: Source, kept: dict[Any, Any]) -> None:
    """Raises `UserError` if an evaluator lacks weights, labels or another source. Called before training starts.

    kept: shared by the evaluations of one run (`scoring.Scoring`).
    """
    for evaluator in chosen(config):
        evaluator.check_source(config, source, kept)
