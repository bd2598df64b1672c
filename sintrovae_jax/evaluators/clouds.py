"""How well point clouds are learnt: JSD (Achlioptas et al. 2018, arXiv 1707.02392), MMD-CD, COV and 1-NNA (Yang et al.
2019, arXiv 1906.12320), against test clouds.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sintrovae_jax import cancellation, progress
from sintrovae_jax.chamfer import chamfer
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import density
from sintrovae_jax.evaluators.evaluator import Evaluator
from sintrovae_jax.keys import Key, at_least

if TYPE_CHECKING:
    from sintrovae_jax.evaluators.scoring import Scoring

_SIDE = 28  # cells along [-0.5, 0.5]
_TRIALS, _TIMES = 3, 3  # trials of JSD, and samples per test cloud in each trial


@functools.cache
def _cells() -> np.ndarray:
    """The centres [N, 3] of the grid's cells that are within the sphere of radius 0.5."""
    axis = np.linspace(-0.5, 0.5, _SIDE)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    return grid[np.linalg.norm(grid, axis=1) <= 0.5]


def occupancy(clouds: np.ndarray) -> np.ndarray:
    """For each cell, the share of the points of clouds [N, points, 3] that are nearest to it. Sums to 1."""
    from scipy.spatial import cKDTree

    tree, counts = cKDTree(_cells()), np.zeros(len(_cells()))
    for cloud in clouds:
        counts += np.bincount(tree.query(cloud)[1], minlength=len(counts))
    return counts / counts.sum()


def js_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """The Jensen-Shannon divergence of two distributions [N], in bits: from 0 to 1."""
    return density.js_divergence(p, q) / float(np.log(2))


@jax.jit
def _to_all(cloud: jax.Array, others: jax.Array) -> jax.Array:
    """The Chamfer distances of a cloud [points, 3] from others [N, points, 3], [N]."""
    return lax.map(lambda other: chamfer(cloud[None], other[None])[0], others)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The Chamfer distances of all pairs of clouds [N, points, 3] and [M, points, 3], float64 [N, M]."""
    others, out = jnp.asarray(b), []
    for cloud in progress.counted(a, "rows of distances"):
        cancellation.check()
        out.append(np.asarray(_to_all(jnp.asarray(cloud), others), np.float64))
    return np.stack(out)


class Comparison(NamedTuple):
    """mmd: mean over references of the distance to the nearest sample. cov: the share of references that are the
    nearest reference of some sample. nna: the accuracy of a leave-one-out nearest-neighbour classifier that tells
    samples from references.
    """

    mmd: float
    cov: float
    nna: float


def compared(across: np.ndarray, references: np.ndarray, samples: np.ndarray) -> Comparison:
    """across: distances between references and samples [R, S]. references, samples: distances among themselves,
    [R, R] and [S, S].

    In `nna`, a cloud that is equally near to its own kind and to the other kind counts half.
    """

    def right(own, other):
        own = own + np.diag(np.full(len(own), np.inf))
        margin = other.min(1) - own.min(1)
        return np.where(margin == 0, 0.5, margin > 0).sum()

    found = len(np.unique(across.argmin(0))) / len(across)
    correct = right(references, across) + right(samples, across.T)
    return Comparison(float(across.min(1).mean()), found, float(correct / sum(across.shape)))


def evaluate(scoring: "Scoring") -> dict[str, float]:
    """jsd (bits, the mean of three trials), mmd_cd, cov and nna (best at 0.5), and how many clouds were compared.

    For jsd, the references are up to `eval.num_samples` test clouds, and each trial draws three times as many samples.
    For the other metrics, `eval.clouds.compared` of the references and as many samples are compared pair by pair.
    mmd_cd is the sum, over both directions, of the mean squared distance of a point to the other cloud.
    """
    model, seed = scoring.model, scoring.seed
    real = scoring.source.test(scoring.num_samples, seed)
    drawn = np.asarray(model.sample(seed, _TRIALS * _TIMES * len(real)))
    scale = 0.5 / (model.config.data.radius or 0.5)
    wanted = occupancy(scale * real)
    trials = [js_divergence(occupancy(scale * part), wanted) for part in np.split(drawn, _TRIALS)]
    count = min(len(real), model.config.eval.clouds.compared)
    real, drawn = real[:count], drawn[:count]
    comparison = compared(distances(real, drawn), distances(real, real), distances(drawn, drawn))
    return {
        "jsd": float(np.mean(trials)),
        "mmd_cd": comparison.mmd / model.shape[0],
        "cov": comparison.cov,
        "nna": comparison.nna,
        "clouds_compared": count,
    }


def _check(config):
    kind = examples.of(config.data).kind
    if kind != "clouds":
        raise UserError(f"the clouds evaluator scores point clouds, not the {kind} of data.source={config.data.source}")


EVALUATOR = Evaluator(
    evaluate,
    lambda config: ("jsd", "mmd_cd", "cov", "nna"),
    {
        "compared": Key(
            200, "largest number of test clouds, and of samples, that are compared pair by pair", at_least(2)
        )
    },
    _check,
)
