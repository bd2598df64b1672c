"""How well a 2D density is learnt: gnELBO, KL and JSD, and a figure (docs/method.md, "2D densities")."""

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from sintrovae_jax import objectives, progress
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators.evaluator import Evaluator
from sintrovae_jax.models import Model

if TYPE_CHECKING:
    from sintrovae_jax.evaluators.scoring import Scoring


_GNELBO_POINTS = 12_800
_GRID = 1024
_BINS = 100
_CHUNK = 16_384  # grid points a call
_TINY = 1e-14  # keeps the logarithm of an empty bin finite


def energy(model: Model, x: np.ndarray) -> np.ndarray:
    """e(x) = rec(x) + kl(x) at β = 1 and z = the posterior's mean, i.e. -ELBO. x: [N, 2]. Returns float64 [N]."""
    rec = objectives.RECONSTRUCTION_ERRORS[model.config.objective.reconstruction]
    out = []
    for start in progress.counted(range(0, len(x), _CHUNK), "points", len(x), _CHUNK):
        chunk = jnp.asarray(x[start : start + _CHUNK], jnp.float32)
        posterior = model.encode(chunk)
        kl = model.kl(posterior)
        out.append(np.asarray(rec(chunk, model.decode(posterior.mean)) + kl, np.float64))
    return np.concatenate(out)


def grid(half_range: float, size: int = _GRID) -> np.ndarray:
    """A size × size grid over [-half_range, half_range]², end points included. Returns [size², 2], rows of equal y."""
    line = np.linspace(-half_range, half_range, size)
    x, y = np.meshgrid(line, line)
    return np.stack([x.ravel(), y.ravel()], 1)


def gnelbo(data_energy: np.ndarray, grid_energy: np.ndarray) -> float:
    """The grid-normalised ELBO: mean energy of the data, divided by the sum over data and grid. Lower is better."""
    return float(data_energy.mean() / (data_energy.sum() + grid_energy.sum()))


def histogram(points: np.ndarray, half_range: float, density: bool = False) -> np.ndarray:
    """100 × 100 bins over the square; points outside are dropped. Sums to 1, or integrates to 1 if `density`.

    All zeros if no point is inside.
    """
    edges = np.linspace(-half_range, half_range, _BINS + 1)
    counts = np.histogram2d(points[:, 0], points[:, 1], [edges, edges])[0]
    total = max(counts.sum(), 1)
    return counts / total / ((2 * half_range / _BINS) ** 2 if density else 1)


def kl_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) in nats between histograms that sum to 1. A bin that q leaves empty counts as 1e-14, not infinity."""
    inside = p > 0
    return float((p[inside] * (np.log(p[inside]) - np.log(np.maximum(q[inside], _TINY)))).sum())


def js_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """JSD(p, q) in nats between histograms that sum to 1; at most log 2."""
    m = (p + q) / 2
    return 0.5 * (kl_divergence(p, m) + kl_divergence(q, m))


def paper_divergences(r: np.ndarray, f: np.ndarray) -> tuple[float, float]:
    """KL and JSD by the convention of the paper's tables. r, f: density-normalised histograms of data and samples."""

    def cross(p, q):  # Σ p (log p - log q), with 0·log 0 = 0
        inside = p > 0
        return (p[inside] * (np.log(p[inside]) - np.log(q[inside] + _TINY))).sum() / _BINS

    m = (r + f) / 2
    return float(cross(r, f)), float(0.5 * (cross(m, r) + cross(m, f)))


def evaluate(scoring: "Scoring") -> dict[str, float]:
    """gnelbo, kl, jsd, paper_kl, paper_jsd; writes density.png.

    The histograms use `eval.num_samples` data points and as many samples (the published ones use 5,000).
    """
    from sintrovae_jax.plots import draw  # matplotlib

    model, num_samples, seed = scoring.model, scoring.num_samples, scoring.seed
    half_range = examples.of(model.config.data).half_range
    points = scoring.source.test(_GNELBO_POINTS + num_samples, seed)
    on_grid = energy(model, grid(half_range))
    data = points[_GNELBO_POINTS:]
    samples = np.asarray(model.sample(seed, num_samples))
    p, q = histogram(data, half_range), histogram(samples, half_range)
    paper_kl, paper_jsd = paper_divergences(histogram(data, half_range, True), histogram(samples, half_range, True))
    draw.density(scoring.folder / "density.png", data[:1024], samples[:1024], on_grid.reshape(_GRID, _GRID), half_range)
    return {
        "gnelbo": gnelbo(energy(model, points[:_GNELBO_POINTS]), on_grid),
        "kl": kl_divergence(p, q),
        "jsd": js_divergence(p, q),
        "paper_kl": paper_kl,
        "paper_jsd": paper_jsd,
    }


def _check(config):
    if examples.of(config.data).kind != "points":
        known = ", ".join(examples.HALF_RANGES)
        raise UserError(f"the density evaluator scores {known}, not data.source={config.data.source}")


EVALUATOR = Evaluator(evaluate, lambda config: ("gnelbo", "kl", "jsd", "paper_kl", "paper_jsd"), check=_check)
