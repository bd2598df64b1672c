"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): are samples like data, and as diverse?

The manifold of a set is the union of balls around its feature vectors. Each ball reaches to the centre's k-th nearest
neighbour.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sintrovae_jax import progress
from sintrovae_jax.evaluators import features
from sintrovae_jax.evaluators.evaluator import Evaluator
from sintrovae_jax.keys import Key, at_least

if TYPE_CHECKING:
    from sintrovae_jax.evaluators.scoring import Scoring


def radii(vectors: np.ndarray, neighbours: int) -> np.ndarray:
    """The distance of each vector [N, D] to its k-th nearest neighbour, not counting itself. Returns [N]."""
    return _by_distances(vectors, vectors, lambda distances: np.partition(distances, neighbours)[:, neighbours])


def covered(vectors: np.ndarray, others: np.ndarray, radii_of_others: np.ndarray) -> float:
    """The share of `vectors` that lie in a ball around one of `others`."""
    return float(_by_distances(vectors, others, lambda distances: (distances <= radii_of_others).any(1)).mean())


def _by_distances(vectors: np.ndarray, others: np.ndarray, function: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Applies function, (distances [n, M]) -> [n], to the distances from parts of [N, D] to [M, D]. Returns [N]."""
    from sklearn.metrics import pairwise_distances_chunked

    parts = pairwise_distances_chunked(vectors, others, reduce_func=lambda distances, start: function(distances))
    return np.concatenate(list(progress.counted(parts, "parts of the distances between feature vectors")))


def precision_and_recall(real: np.ndarray, generated: np.ndarray, neighbours: int = 3) -> tuple[float, float]:
    """Both in [0, 1], or NaN if a feature is not finite. real, generated: [N, D] and [M, D]."""
    if not (np.isfinite(real).all() and np.isfinite(generated).all()):
        return math.nan, math.nan
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    precision = covered(generated, real, radii(real, neighbours))
    return precision, covered(real, generated, radii(generated, neighbours))


def evaluate(scoring: "Scoring") -> dict[str, Any]:
    """precision and recall; with other features than Inception's, precision_EXTRACTOR and recall_EXTRACTOR.

    Uses equal numbers of real images and samples.
    """
    neighbours = scoring.model.config.eval.precision_recall.neighbours
    real, generated = scoring.compared(neighbours + 1, "precision and recall")
    n = min(real.count, generated.count)
    precision, recall = precision_and_recall(real.vectors[:n], generated.vectors[:n], neighbours)
    return scoring.described("precision", {"precision": precision, "recall": recall}, n, n)


EVALUATOR = Evaluator(
    evaluate,
    lambda config: features.metrics(config, "precision", "recall"),
    {"neighbours": Key(3, "k: a ball reaches to the k-th nearest neighbour of its centre", at_least(1))},
    lambda config: features.check_images("precision_recall", config),
    features.check,
    vectors=True,
)
