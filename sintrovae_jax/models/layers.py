"""Shared by the network families: the posterior, and layers with the published initialisation."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sintrovae_jax import parallel
from sintrovae_jax.arrays import Scalar
from sintrovae_jax.errors import UserError
from sintrovae_jax.models.convolution import Convolution, convolve
from sintrovae_jax.objectives import at_least_float32

MOMENTUM = 0.9  # of BatchNorm's running averages; PyTorch's convention is 1 minus this, 0.1
_EPSILON = 1e-5  # of BatchNorm
ROLES = ("posterior", "prior")  # the distribution that a decoder's latents are sampled from


class Posterior(NamedTuple):
    """q(z|x) = N(mean, exp(logvar)), a diagonal Gaussian. Both float32, [B, Z]."""

    mean: jax.Array
    logvar: jax.Array

    def sample(self, noise: jax.Array) -> jax.Array:
        """z = mean + std·noise. noise: standard normal, [B, Z]. Returns [B, Z]."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


class Stage(NamedTuple):
    """How far growing networks have grown: their level (static), and how much of it is blended in, 0 to 1 (traced)."""

    level: int
    blend: Scalar = 1.0


class Statistics(NamedTuple):
    """The statistics that BatchNorm normalises with. Static.

    In training, the statistics of each of the `groups` concatenated batches; in evaluation, the running averages of one
    role: one of `ROLES` for a decoder, the only role for an encoder.
    """

    train: bool
    groups: int = 1
    roles: int = 1
    role: int = 0


def decoder_statistics(train: bool, groups: int, role: str) -> Statistics:
    """The statistics of a decoder. Raises `UserError` for a role that does not exist."""
    if role not in ROLES:
        raise UserError(f"what is decoded is from {' or '.join(ROLES)}, not {role!r}")
    return Statistics(train, groups, len(ROLES), ROLES.index(role))


class BatchNorm(nn.Module):
    """Normalises each channel of x [groups·B, ..., C] over each group (and in training over all devices).

    Every role has its own running averages, mean and var [roles, features], because the inputs of the roles differ.
    With as many groups as roles, each group updates the averages of one role. A single group updates all of them, so
    that a decoder trained only on posterior samples can still decode prior samples. Statistics are at least float32. C
    is `features`, or twice as many for pairs of pixels (`convolution`).
    """

    features: int
    statistics: Statistics
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        train, groups, roles, role = self.statistics
        averages = [
            self.variable("batch_stats", name, start, (roles, self.features), jnp.float32)
            for name, start in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        scale = self.param("scale", nn.initializers.ones, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if train:
            y, *moments = batch_normalized(x, scale, bias, groups)
            if self.is_mutable_collection("batch_stats"):
                for average, moment in zip(averages, moments, strict=True):
                    average.value = MOMENTUM * average.value + (1 - MOMENTUM) * moment
        else:
            mean, var = (average.value[role : role + 1] for average in averages)
            y = _scaled(x, mean, lax.rsqrt(var + _EPSILON) * scale, bias)
        return y.astype(self.dtype or x.dtype)


def _in_groups(x: jax.Array, groups: int) -> jax.Array:
    return at_least_float32(x).reshape(groups, -1, *x.shape[1:])


def _per_group(values: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes values of each group's channels [groups, features] to broadcast over x [groups, B, ..., C]."""
    return side_by_side(values, x).reshape(len(x), *[1] * (x.ndim - 2), x.shape[-1])


def _reductions(*values: jax.Array) -> jax.Array:
    """Values [groups, B, ..., C] summed over all axes but group and channel: [number of values, groups, C]."""
    return jnp.stack([value.sum(tuple(range(1, value.ndim - 1))) for value in values])


def _products(*values: jax.Array) -> jax.Array:
    """`_reductions` as products with ones.

    XLA's CPU compiler fuses the computation of the values into a reduction, which then handles one number at a time.
    """
    flat = [value.reshape(len(value), -1, value.shape[-1]) for value in values]
    return jnp.stack([(jnp.ones((len(each), 1, each.shape[1]), each.dtype) @ each)[:, 0] for each in flat])


def _channel_sums(features: int, *values: jax.Array) -> jax.Array:
    """Values [groups, B, ..., C] summed over all axes but group and feature: [number of values, groups, features]."""
    sums = lax.platform_dependent(*values, cpu=_products, default=_reductions)
    return sums.reshape(len(values), len(values[0]), -1, features).sum(2)


def _scaled(x, mean, factor, bias):
    y = _in_groups(x, len(mean))
    y = (y - _per_group(mean, y)) * _per_group(factor, y) + side_by_side(bias, x)
    return y.reshape(x.shape).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_normalized(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x [groups·B, ..., C] by each group's own mean and variance [groups, features].

    Also returns these, without gradients. The gradient is written out, so that it is computed from x in its own dtype,
    not from float32 copies.
    """
    return _forward(x, scale, bias, groups)[0]


def _forward(x, scale, bias, groups):
    y = _in_groups(x, groups)
    both = _channel_sums(len(scale), y, jnp.square(y)) * (len(scale) * groups / x.size)
    mean, square = parallel.pmean(both)  # one all-reduce for both
    var = jnp.maximum(square - jnp.square(mean), 0)
    rstd = lax.rsqrt(var + _EPSILON)
    return (_scaled(x, mean, rstd * scale, bias), mean, var), (x, scale, mean, rstd)


def _backward(groups, saved, grads):
    x, scale, mean, rstd = saved
    y, grad = _in_groups(x, groups), _in_groups(grads[0], groups)
    unit = (y - _per_group(mean, y)) * _per_group(rstd, y)
    sums = _channel_sums(len(scale), grad, grad * unit)
    mean_grad, mean_product = parallel.pmean(sums) * (len(scale) * groups / x.size)
    y_grad = _per_group(rstd * scale, y) * (grad - _per_group(mean_grad, y) - unit * _per_group(mean_product, y))
    return y_grad.reshape(x.shape).astype(x.dtype), sums[1].sum(0), sums[0].sum(0)


batch_normalized.defvjp(_forward, _backward)


def split_posterior(features: jax.Array) -> Posterior:
    """The last layer's features [B, 2Z] as a posterior: first half mean, second half logvar."""
    mean, logvar = jnp.split(at_least_float32(features), 2, axis=-1)
    return Posterior(mean, logvar)


def with_labels(features: jax.Array, labels: jax.Array | None, classes: int) -> jax.Array:
    """Appends one-hot labels to features [B, F]: [B, F + classes]. If classes is 0, returns the features.

    labels: whole numbers [B] below `classes`, or weights of the classes [B, classes], such as blends of two classes.
    """
    if not classes:
        return features
    assert labels is not None
    weights = labels if labels.ndim == 2 else jax.nn.one_hot(labels, classes)
    return jnp.concatenate([features, weights.astype(features.dtype)], -1)


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in ±1/sqrt(fan_in), the initialisation that the published hyper-parameters were tuned with."""
    limit = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class Conv(nn.Module):
    """A size×size convolution, computed by `convolve`, with the published initialisation.

    Like `flax.linen.Conv`, but takes the number of input channels as an argument, because x may hold pairs of pixels.
    """

    features: int
    size: int
    inputs: int
    dtype: jnp.dtype | None = None
    bias: bool = False
    convolve: Convolution = convolve

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_fan_in(self.size * self.size * self.inputs)
        kernel = self.param("kernel", init, (self.size, self.size, self.inputs, self.features))
        bias = self.param("bias", init, (self.features,)) if self.bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = self.convolve(x, kernel)
        return x if bias is None else x + side_by_side(bias, x)


def side_by_side(values: jax.Array, x: jax.Array) -> jax.Array:
    """Per-channel values [..., C], repeated if x holds pairs of pixels."""
    return jnp.tile(values, x.shape[-1] // values.shape[-1])


class Dense(nn.Module):
    """`flax.linen.Dense` whose weights *and biases* start uniform in ±1/sqrt(fan_in). [..., in] -> [..., features]."""

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_fan_in(x.shape[-1])
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=init, bias_init=init, name="dense")(x)
