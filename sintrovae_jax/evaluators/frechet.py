"""Fréchet distance between Gaussian fits of features (Heusel et al. 2017, arXiv 1706.08500): FID with Inception."""

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sintrovae_jax.evaluators import features
from sintrovae_jax.evaluators.evaluator import Evaluator

if TYPE_CHECKING:
    from sintrovae_jax.evaluators.scoring import Scoring

log = logging.getLogger(__name__)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of a covariance; eigenvalues that are negative by rounding count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½) in float64. Means [D]; covariances [D, D] may be singular.
    NaN if they are not finite.

    tr (C_a C_b)^½ is the sum of the singular values of C_a^½ C_b^½, whose rounding errors are 1e-16 of the largest one.
    The eigenvalues of C_a C_b are the squares of these values; their roots would lose half of the digits.
    """
    if not (np.isfinite(cov_a).all() and np.isfinite(cov_b).all()):
        return math.nan
    overlap = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap)


def evaluate(scoring: "Scoring") -> dict[str, Any]:
    """fid or frechet_EXTRACTOR, and the numbers of samples and real images."""
    real, generated = scoring.compared(2, "a Fréchet distance")
    log.info("comparing covariances of %d features", len(real.mean))
    distance = frechet_distance(real.mean, real.covariance, generated.mean, generated.covariance)
    return scoring.described("fid", {"fid": distance}, generated.count, real.count)


EVALUATOR = Evaluator(
    evaluate,
    lambda config: features.metrics(config, "fid"),
    check=lambda config: features.check_images("fid", config),
    check_source=features.check,
)
