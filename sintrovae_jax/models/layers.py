"""What the network families share: the posterior, and layers with the published initialisation."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sintrovae_jax import parallel
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
) -> nn.Module:
    """A size×size convolution, done by `convolve`, with the published initialisation."""
    return Conv(features, size, inputs, dtype, bias, convolve, name=name)


class Conv(nn.Module):
    """What `conv` makes. As `flax.linen.Conv`, but it knows its inputs' channels, which may come in pairs of pixels."""

    features: int
    size: int
    inputs: int
    dtype: jnp.dtype | None
    bias: bool
    convolve: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_fan_in(self.size * self.size * self.inputs)
        kernel = self.param("kernel", init, (self.size, self.size, self.inputs, self.features))
        bias = self.param("bias", init, (self.features,)) if self.bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = self.convolve(x, kernel)
        return x if bias is None else x + side_by_side(bias, x)


def side_by_side(values: jax.Array, x: jax.Array) -> jax.Array:
    """Values of the channels [C] as x has them: once, or twice where it is of pairs of pixels."""
    return jnp.tile(values, x.shape[-1] // len(values))


class BatchNorm(nn.Module):
    """Normalises by the batch, height, width and devices in training, and by running averages in evaluation.

    Statistics are float32. x: [B, H, W, features], or of pairs of pixels [B, H, W/2, 2·features].
    """

    features: int
    train: bool
    dtype: jnp.dtype | None = None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.features,)
        means = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variances = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if self.train:
            y, mean, var = normalised(x, scale, bias, self.epsilon)
            if not self.is_initializing():
                means.value = MOMENTUM * means.value + (1 - MOMENTUM) * mean
                variances.value = MOMENTUM * variances.value + (1 - MOMENTUM) * var
        else:
            y = _scaled(x, means.value, lax.rsqrt(variances.value + self.epsilon) * scale, bias)
        return y.astype(self.dtype or x.dtype)


def _scaled(x, mean, factor, bias):
    y = (at_least_float32(x) - side_by_side(mean, x)) * side_by_side(factor, x) + side_by_side(bias, x)
    return y.astype(x.dtype)


def _means(x, weights, features):
    """Means over the batch, height, width and devices, of x times each of the weights. Returns [weights, features]."""
    both = jnp.stack([(x * weight).mean((0, 1, 2)) for weight in weights])
    return parallel.pmean(both.reshape(len(weights), -1, features).mean(1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalised(x, scale, bias, epsilon):
    """x normalised by its batch's statistics, which are returned too and carry no gradient.

    The gradient is written out so that it is computed from x as it is, not from copies of it in float32.
    """
    return _normalised(x, scale, bias, epsilon)[0]


def _normalised(x, scale, bias, epsilon):
    y = at_least_float32(x)
    mean, square = _means(y, (1.0, y), len(scale))
    var = jnp.maximum(square - mean * mean, 0)
    rstd = lax.rsqrt(var + epsilon)
    return (_scaled(x, mean, rstd * scale, bias), mean, var), (x, scale, mean, rstd)


def _normalised_backward(epsilon, saved, grads):
    del epsilon
    x, scale, mean, rstd = saved
    grad = at_least_float32(grads[0])
    unit = (at_least_float32(x) - side_by_side(mean, x)) * side_by_side(rstd, x)
    sums = jnp.stack([grad.sum((0, 1, 2)), (grad * unit).sum((0, 1, 2))]).reshape(2, -1, len(scale)).sum(1)
    count = x.size // len(scale)
    means = parallel.pmean(sums) / count
    of_bias, of_scale = (side_by_side(each, x) for each in means)
    x_grad = side_by_side(rstd * scale, x) * (grad - of_bias - unit * of_scale)
    return x_grad.astype(x.dtype), sums[1], sums[0]


normalised.defvjp(_normalised, _normalised_backward)


class Dense(nn.Module):
    """`flax.linen.Dense` whose weights *and biases* start uniform in ±1/sqrt(fan_in). [..., in] -> [..., features]."""

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_fan_in(x.shape[-1])
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=init, bias_init=init, name="dense")(x)
