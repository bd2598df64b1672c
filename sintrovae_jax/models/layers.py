"""What the network families share: the posterior, and layers with the published initialisation."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sintrovae_jax.models.convolution import convolve
from sintrovae_jax.objectives import at_least_float32

MOMENTUM = 0.9  # of BatchNorm's running averages; PyTorch calls it 0.1


class Posterior(NamedTuple):
    """q(z|x) = N(mean, exp(logvar)), a diagonal Gaussian. Both float32, [B, Z]."""

    mean: jax.Array
    logvar: jax.Array

    def sample(self, noise: jax.Array) -> jax.Array:
        """z = mean + std·noise. noise: standard normal, [B, Z]. Returns [B, Z]."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


class Stage(NamedTuple):
    """How far a family that grows has grown: its level (static), and how much of it is blended in, 0 to 1 (traced)."""

    level: int
    blend: Any = 1.0


def split_posterior(features: jax.Array) -> Posterior:
    """The last layer's features [B, 2Z] as a posterior: first half mean, second half logvar."""
    mean, logvar = jnp.split(at_least_float32(features), 2, axis=-1)
    return Posterior(mean, logvar)


def uniform_fan_in(fan_in: int) -> Callable:
    """Uniform in ±1/sqrt(fan_in), the initialisation behind the published figures (reference.md, section 1)."""
    limit = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def conv(
    features: int, size: int, inputs: int, dtype, name: str, *, bias: bool = False, convolve: Callable = convolve
) -> nn.Conv:
    """A size×size convolution, done by `convolve`, with the published initialisation."""
    init = uniform_fan_in(size * size * inputs)
    options = {"use_bias": bias, "kernel_init": init, "bias_init": init, "conv_general_dilated": convolve}
    return nn.Conv(features, (size, size), dtype=dtype, name=name, **options)


class Dense(nn.Module):
    """`flax.linen.Dense` whose weights *and biases* start uniform in ±1/sqrt(fan_in). [..., in] -> [..., features]."""

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_fan_in(x.shape[-1])
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=init, bias_init=init, name="dense")(x)
