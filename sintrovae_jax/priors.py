"""Priors: a fixed normal distribution, and a mixture of Gaussians that is learnt (`model.prior=mixture`).

The mixture is a third player that cooperates with the decoder (Athanasiadis, Lindsten & Felsberg, "Prior Learning in
Introspective VAEs", TMLR 2025; docs/method.md, "A learnt prior"): it minimises s·β_kl·KL(q(z|x) || p(z)) of real data,
while the KLs of generated data treat it as a constant.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from ml_collections import ConfigDict

from sintrovae_jax import objectives
from sintrovae_jax.arrays import Array, Scalar

_LARGEST = float(np.finfo(np.float32).max)
# The part of a fresh mixture's variance that is within its components; the rest is the variance of their means.
_WITHIN = 0.25


class Normal(struct.PyTreeNode):
    """N(0, std² I)."""

    std: Scalar

    def log_prob(self, z: jax.Array) -> jax.Array:
        """ln p(z) + Z/2·ln 2π. z: [..., Z]. Returns [...]."""
        return -(0.5 * jnp.square(z / self.std) + jnp.log(self.std)).sum(-1)


class Mixture(struct.PyTreeNode):
    """Σ_k softmax(logits)_k N(mean_k, exp(logvar_k)). mean, logvar: [K, Z]; logits: [K]."""

    mean: Array
    logvar: Array
    logits: Array

    @property
    def components(self) -> int:
        return len(self.logits)

    def joint(self, z: jax.Array) -> jax.Array:
        """ln p(z, k) + Z/2·ln 2π of every component. z: [..., Z]. Returns [..., K]."""
        apart = jnp.square(z[..., None, :] - self.mean) / jnp.exp(self.logvar)
        return jax.nn.log_softmax(self.logits) - 0.5 * (apart + self.logvar).sum(-1)

    def log_prob(self, z: jax.Array) -> jax.Array:
        """ln p(z) + Z/2·ln 2π. z: [..., Z]. Returns [...]."""
        return jax.nn.logsumexp(self.joint(z), axis=-1)

    def responsibilities(self, z: jax.Array) -> jax.Array:
        """p(k|z). z: [..., Z]. Returns [..., K]."""
        return jax.nn.softmax(self.joint(z), axis=-1)

    def at(self, noise: jax.Array, component: jax.Array) -> jax.Array:
        """Maps standard normal noise [N, Z] to latents of the given components [N]."""
        return jnp.asarray(self.mean)[component] + jnp.exp(0.5 * jnp.asarray(self.logvar)[component]) * noise

    def kl(self, mean: jax.Array, logvar: jax.Array, noise: jax.Array) -> jax.Array:
        """KL( N(mean, exp(logvar)) || mixture ) per example, in nats.

        Exact for a single component; otherwise the mean over samples with this noise, an unbiased estimate that may be
        negative. mean, logvar: [B, Z]; noise: standard normal, [B, S, Z]. Returns [B].
        """
        mean, logvar = objectives.at_least_float32(mean), objectives.at_least_float32(logvar)
        if self.components == 1:
            return objectives.kl(mean - self.mean, logvar, jnp.exp(0.5 * self.logvar))
        z = mean[:, None] + jnp.exp(0.5 * logvar)[:, None] * noise
        log_q = -0.5 * (jnp.square(noise) + logvar[:, None]).sum(-1)
        return (log_q - self.log_prob(z)).mean(1)


class PriorState(struct.PyTreeNode):
    """A learnt prior in training: a `Mixture`, its optimiser's state, and the bounds of its logvar, [Z] each."""

    mixture: Mixture
    opt_state: optax.OptState
    low: Array
    high: Array


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings of a learnt prior.

    components: their number. kl_samples: samples per estimate of a KL. rate: its learning rate, as a multiple of the
    networks' rate. responsibility: the weight of the regulariser of responsibilities. std: a fresh mixture's standard
    deviation.
    """

    components: int
    kl_samples: int
    rate: float
    responsibility: float
    std: float


def setting(config: ConfigDict) -> Setting | None:
    """The settings of a config's learnt prior; None: the prior is fixed."""
    if config.model.prior == "normal":
        return None
    own, common = config.optimizer.prior_learning_rate, config.optimizer.learning_rate
    o = config.objective
    rate = 1.0 if own is None else own / common
    return Setting(config.model.components, o.kl_samples, rate, o.responsibility, o.prior_std)


def learnt(variables: dict[str, Any]) -> Mixture | None:
    """The learnt prior among a model's variables; None: its prior is fixed."""
    return variables.get("prior")


def create(key: jax.Array, setting: Setting, z_dim: int, tx: optax.GradientTransformation) -> PriorState:
    """A fresh mixture with mean about 0 and variances about std²; with one component it is N(0, std²)."""
    k, variance = setting.components, setting.std**2
    within = _WITHIN * variance if k > 1 else variance
    mean = jnp.sqrt(variance - within) * jax.random.normal(key, (k, z_dim))
    mixture = Mixture(mean, jnp.full((k, z_dim), jnp.log(within)), jnp.zeros(k))
    unbounded = jnp.full(z_dim, _LARGEST)
    return PriorState(mixture, tx.init(mixture), -unbounded, unbounded)


def bounded(state: PriorState) -> PriorState:
    """The state with the adversarial phase's bounds: the logvars' range in each dimension when that phase begins."""
    first = state.high[0] == _LARGEST
    low, high = jnp.min(state.mixture.logvar, 0), jnp.max(state.mixture.logvar, 0)
    return state.replace(low=jnp.where(first, low, state.low), high=jnp.where(first, high, state.high))


def stepped(
    state: PriorState, tx: optax.GradientTransformation, gradient: Mixture, learning_rate: Scalar
) -> PriorState:
    """The state after one optimiser step, with its logvars clipped to the bounds."""
    updates, opt_state = tx.update(gradient, state.opt_state, state.mixture)
    mixture = optax.apply_updates(state.mixture, jax.tree.map(lambda u: -learning_rate * u, updates))
    mixture = mixture.replace(logvar=jnp.clip(mixture.logvar, state.low, state.high))
    return state.replace(mixture=mixture, opt_state=opt_state)
