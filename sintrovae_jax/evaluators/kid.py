"""Kernel Inception Distance (Bińkowski et al. 2018, arXiv 1801.01401): an unbiased MMD² with a cubic kernel."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sintrovae_jax import cancellation, progress
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import features
from sintrovae_jax.evaluators.evaluator import Evaluator
from sintrovae_jax.keys import Key, at_least

if TYPE_CHECKING:
    from sintrovae_jax.evaluators.scoring import Scoring


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of MMD² between n vectors each, [n, D] float64, with the kernel (x·y / D + 1)³."""
    n = len(x)
    k_xx, k_yy, k_xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = (k_xx.sum() - np.trace(k_xx) + k_yy.sum() - np.trace(k_yy)) / (n * (n - 1))
    return float(within - 2 * k_xy.mean())


def kid(real: np.ndarray, generated: np.ndarray, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of MMD² over random subsets of `size` vectors each, drawn without replacement."""
    rng, values = np.random.default_rng(seed), []
    for _ in progress.counted(range(subsets), "subsets"):
        cancellation.check()
        x, y = (v[rng.choice(len(v), size, replace=False)].astype(np.float64) for v in (real, generated))
        values.append(mmd2(x, y))
    return float(np.mean(values)), float(np.std(values))


def evaluate(scoring: "Scoring") -> dict[str, Any]:
    """kid and kid_std over `eval.kid.subsets` subsets of `eval.kid.subset_size`; without Inception, kid_EXTRACTOR."""
    options = scoring.model.config.eval.kid
    real, generated = scoring.compared(options.subset_size, "kid with this eval.kid.subset_size")
    mean, std = kid(real.vectors, generated.vectors, options.subsets, options.subset_size, scoring.seed)
    return scoring.described("kid", {"kid": mean, "kid_std": std}, generated.count, real.count)


def _check(config):
    features.check_images("kid", config)
    size, samples = config.eval.kid.subset_size, config.eval.num_samples
    if size > samples:
        raise UserError(f"eval.kid.subset_size={size} needs as many samples: eval.num_samples={samples}")


EVALUATOR = Evaluator(
    evaluate,
    lambda config: features.metrics(config, "kid"),
    {
        "subsets": Key(100, "number of subsets that the estimate averages over", at_least(1)),
        "subset_size": Key(1000, "number of samples, and of real images, in a subset", at_least(2)),
    },
    _check,
    features.check,
    vectors=True,
)
