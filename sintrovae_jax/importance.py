"""log p(x) by importance weighting (Burda, Grosse & Salakhutdinov 2016, arXiv 1509.00519).

    log p(x) ≈ logsumexp_k[ log p(x|z_k) + log p(z_k) - log q(z_k|x) ] - log K,     z_k ~ q(z|x)

with p(x|z) = N(D(z), std² I). It is a lower bound in expectation, which tightens as K grows; K = 1 is the ELBO.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sintrovae_jax.arrays import Scalar

if TYPE_CHECKING:
    from sintrovae_jax.models.layers import Posterior


_LOG_2PI = math.log(2 * math.pi)


class Estimate(NamedTuple):
    """In nats, float32 [B] each."""

    log_likelihood: jax.Array  # log p(x)
    elbo: jax.Array  # the mean of the K logarithms of importance weights


def importance_weighted(
    decode: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    posterior: "Posterior",
    keys: jax.Array,
    samples: Scalar,
    *,
    std: Scalar,
    prior_std: Scalar = 1.0,
) -> Estimate:
    """Estimates log p(x) of every example, holding one of its K samples at a time, so that memory does not grow with K.

    decode: z [B, Z], keys [B] for a decoder's noise -> x̂ [B, ...]. x: [B, ...]. posterior: q(z|x). keys: [B]; the
    samples of an example depend on its key alone. samples: K, may be traced. std: of p(x|z).
    """
    mean, logvar = (a.astype(jnp.float32) for a in posterior)
    dimensions = math.prod(x.shape[1:])

    def log_weight(k):
        key, noise = jnp.split(jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, k)))(keys), 2, 1)
        eps = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(key[:, 0])
        z = mean + jnp.exp(logvar / 2) * eps
        error = (x - decode(z, noise[:, 0])).astype(jnp.float32).reshape(len(x), -1)
        log_p_x = -0.5 * jnp.square(error / std).sum(1) - dimensions * (jnp.log(std) + _LOG_2PI / 2)
        # log p(z) - log q(z|x), whose 2π cancel.
        log_ratio = 0.5 * (jnp.square(eps) + logvar - jnp.square(z / prior_std) - 2 * jnp.log(prior_std)).sum(1)
        return log_p_x + log_ratio

    def add(k, carry):
        highest, total, mean_log = carry  # total: of exp(weight - highest), which cannot overflow
        weight = log_weight(k)
        new = jnp.maximum(highest, weight)
        # A running mean: a sum of thousands of large numbers would lose digits.
        return new, total * jnp.exp(highest - new) + jnp.exp(weight - new), mean_log + (weight - mean_log) / (k + 1)

    zero = jnp.zeros(len(x))
    highest, total, mean_log = jax.lax.fori_loop(0, samples, add, (zero - jnp.inf, zero, zero))
    return Estimate(highest + jnp.log(total) - jnp.log(samples), mean_log)


def observation_std(objective: ConfigDict) -> float:
    """The std of p(x|z) for which `config.objective`'s β_rec·rec + β_kl·kl is β_kl times -ELBO: sqrt(β_kl / 2 β_rec).

    NaN if there is none: a term has no weight, or the reconstruction error is not that of a Gaussian.
    """
    beta_kl = 1.0 if objective.name == "intro" else objective.beta_kl  # IntroVAE's KL of real data has no weight
    if objective.reconstruction != "mse" or not (objective.beta_rec > 0 and beta_kl > 0):
        return math.nan
    return math.sqrt(beta_kl / (2 * objective.beta_rec))


def bits_per_dimension(log_likelihood: float, dimensions: int) -> float:
    """-log2 p(x) / D of images with 256 levels: from nats of their density on [0, 1], 8 bits - log2 p(x) / D."""
    return 8 - log_likelihood / (dimensions * math.log(2))
