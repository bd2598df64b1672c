"""How likely the model finds test images: log p(x) by importance weighting, in nats and in bits a dimension."""

import math

import numpy as np

from sintrovae_jax import importance
from sintrovae_jax.data import examples
from sintrovae_jax.evaluators.scoring import Scoring


def evaluate(scoring: Scoring) -> dict[str, float]:
    """Means over `eval.num_scored` test images: log_likelihood and elbo in nats, and of images bits_per_dimension.

    And what they depend on: observation_std, importance_samples, and log_likelihood_images, how many there were.
    """
    model, scores = scoring.model, scoring.test_scores
    mean = float(np.mean(scores["likelihood"]))
    images = examples.of(model.config.data).kind == "images"
    bits = {"bits_per_dimension": importance.bits_per_dimension(mean, math.prod(model.shape))} if images else {}
    return bits | {
        "log_likelihood": mean,
        "elbo": float(np.mean(scores["elbo"])),
        "observation_std": model.observation_std,
        "importance_samples": model.config.eval.importance_samples,
        "log_likelihood_images": len(scores["likelihood"]),
    }
