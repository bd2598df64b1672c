"""Log-likelihood of test images by importance weighting, in nats and in bits per dimension."""

import math
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import importance
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators.evaluator import Evaluator
from sintrovae_jax.keys import ABOVE_0, Key, Optional, at_least

if TYPE_CHECKING:
    from sintrovae_jax.evaluators.scoring import Scoring


def evaluate(scoring: "Scoring") -> dict[str, float]:
    """Means over `eval.likelihood.num_scored` test examples: log_likelihood and elbo in nats, and bits_per_dimension
    for images.

    Also the settings behind them: observation_std, importance_samples, and log_likelihood_images, the number of
    examples.
    """
    model, scores = scoring.model, scoring.test_scores
    mean = float(np.mean(scores["likelihood"]))
    images = examples.of(model.config.data).kind == "images"
    bits = {"bits_per_dimension": importance.bits_per_dimension(mean, math.prod(model.shape))} if images else {}
    return bits | {
        "log_likelihood": mean,
        "elbo": float(np.mean(scores["elbo"])),
        "observation_std": model.observation_std,
        "importance_samples": model.config.eval.likelihood.importance_samples,
        "log_likelihood_images": len(scores["likelihood"]),
    }


def check_std(name: str, config: ConfigDict) -> None:
    """Raises `UserError` if p(x|z) has no standard deviation, or is not defined. name: the evaluator's name."""
    if examples.of(config.data).kind == "clouds":
        raise UserError(f"the {name} evaluator is for images and points: a cloud's points have no order to compare in")
    if not (config.eval.likelihood.observation_std or importance.observation_std(config.objective) > 0):
        raise UserError(
            f"the {name} evaluator has no standard deviation of p(x|z) here: set eval.likelihood.observation_std"
        )


def _metrics(config):
    return ("log_likelihood", "elbo", "bits_per_dimension")


EVALUATOR = Evaluator(
    evaluate,
    _metrics,
    {
        "num_scored": Key(1000, "number of test images that are scored", at_least(1)),
        "importance_samples": Key(1000, "importance samples per test image", at_least(1)),
        "observation_std": Key(
            Optional(float),
            "standard deviation of p(x|z), a Gaussian around the decoded image; default: the one that the trained "
            "objective implies, sqrt(beta_kl / (2 beta_rec))",
            ABOVE_0,
        ),
    },
    lambda config: check_std("likelihood", config),
)
