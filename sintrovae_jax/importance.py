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
    """The estimates in nats, float32 [B] each."""

    log_likelihood: jax.Array  # log p(x)
    elbo: jax.Array  # the mean of the logarithms of the K importance weights


class Sums(NamedTuple):
    """Over the importance samples so far, float32 [B] each."""

    highest: jax.Array  # the largest logarithm of a weight
    total: jax.Array  # the sum of exp(log weight - highest), which cannot overflow
    mean_log: jax.Array  # the mean log weight, as a running mean: a sum of thousands of large numbers would lose digits


def no_samples(count: int) -> Sums:
    """The sums for `count` examples before the first sample."""
    zero = jnp.zeros(count)
    return Sums(zero - jnp.inf, zero, zero)


def add_samples(
    sums: Sums,
    decode: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    posterior: "Posterior",
    keys: jax.Array,
    first: Scalar,
    stop: Scalar,
    *,
    std: Scalar,
    log_prior: Callable[[jax.Array], jax.Array],
) -> Sums:
    """Adds the samples [first, stop), which may be traced. Holds one at a time: memory does not grow with their number.

    decode: z [B, Z], keys [B] for a decoder's noise -> x̂ [B, ...]. x: [B, ...]. posterior: q(z|x). keys: [B]; an
    example's samples depend only on its key and their numbers. std: the standard deviation of p(x|z). log_prior: z
    [B, Z] -> ln p(z) + Z/2·ln 2π.
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
        return log_p_x + log_prior(z) + 0.5 * (jnp.square(eps) + logvar).sum(1)

    def add(k, sums):
        weight = log_weight(k)
        new = jnp.maximum(sums.highest, weight)
        total = sums.total * jnp.exp(sums.highest - new) + jnp.exp(weight - new)
        return Sums(new, total, sums.mean_log + (weight - sums.mean_log) / (k + 1))

    return jax.lax.fori_loop(first, stop, add, sums)


def estimate(sums: Sums, samples: Scalar) -> Estimate:
    """The estimate from the sums over the samples [0, samples)."""
    return Estimate(sums.highest + jnp.log(sums.total) - jnp.log(samples), sums.mean_log)


def observation_std(objective: ConfigDict) -> float:
    """The std of p(x|z) for which `config.objective`'s β_rec·rec + β_kl·kl is β_kl times -ELBO: sqrt(β_kl / 2 β_rec).

    NaN if there is none, because a term has weight 0 or the reconstruction error is not a Gaussian's (mse).
    """
    beta_kl = 1.0 if objective.name == "intro" else objective.beta_kl  # IntroVAE's KL of real data has no weight
    if objective.reconstruction != "mse" or not (objective.beta_rec > 0 and beta_kl > 0):
        return math.nan
    return math.sqrt(beta_kl / (2 * objective.beta_rec))


def bits_per_dimension(log_likelihood: float, dimensions: int) -> float:
    """-log2 p(x) / D of images with 256 levels. log_likelihood: log density on [0, 1], in nats; levels add 8 bits."""
    return 8 - log_likelihood / (dimensions * math.log(2))
