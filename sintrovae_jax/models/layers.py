"""What the network families share: the posterior, and layers with the published initialisation."""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

MOMENTUM = 0.9  # of BatchNorm's running averages; PyTorch calls it 0.1


class Posterior(NamedTuple):
    """q(z|x) = N(mean, exp(logvar)), a diagonal Gaussian. Both float32, [B, Z]."""

    mean: jax.Array
    logvar: jax.Array

    def sample(self, noise: jax.Array) -> jax.Array:
        """z = mean + std·noise. noise: standard normal, [B, Z]. Returns [B, Z]."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


def split_posterior(features: jax.Array) -> Posterior:
    """The last layer's features [B, 2Z] as a posterior: first half mean, second half logvar."""
    mean, logvar = jnp.split(features.astype(jnp.promote_types(features.dtype, jnp.float32)), 2, axis=-1)
    return Posterior(mean, logvar)


def uniform_fan_in(fan_in: int) -> Callable:
    """Uniform in ±1/sqrt(fan_in), the initialisation behind the published figures (reference.md, section 1)."""
    limit = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class Dense(nn.Module):
    """`flax.linen.Dense` whose weights *and biases* start uniform in ±1/sqrt(fan_in). [..., in] -> [..., features]."""

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_fan_in(x.shape[-1])
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=init, bias_init=init, name="dense")(x)


def convolve(x: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
    """What `flax.linen.Conv` calls for a convolution of stride 1 that keeps height and width, the only kind here.

    x: [B, H, W, in], kernel: [k, k, in, out], k odd. Returns [B, H, W, out].

    A 1×1 convolution is a matrix product. The gradients of others are written out for the CPU: inside a loop, such as
    the scan over substeps, XLA's CPU compiler (seen in jaxlib 0.10.2) leaves gradient convolutions in a layout that it
    has no fast kernel for, and a step takes twenty times as long as with them brought into a forward one's layout.
    """
    del args, kwargs
    return x @ kernel[0, 0] if kernel.shape[:2] == (1, 1) else _same(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=layout)


@jax.custom_vjp
def _same(x, kernel):
    return _forward(x, kernel, kernel.shape[0] // 2)


def _same_forward(x, kernel):
    return _same(x, kernel), (x, kernel)


def _same_backward(inputs, grad):
    def for_cpu(x, kernel, grad):
        pad = kernel.shape[0] // 2
        x_grad = _forward(grad, kernel[::-1, ::-1].swapaxes(2, 3), pad)
        # Of the kernel: images become channels, channels become images, and the gradient is the kernel.
        kernel_grad = _forward(x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3), pad).transpose(1, 2, 0, 3)
        return x_grad, kernel_grad

    def as_usual(x, kernel, grad):
        return jax.vjp(lambda x, kernel: _forward(x, kernel, kernel.shape[0] // 2), x, kernel)[1](grad)

    return lax.platform_dependent(*inputs, grad, cpu=for_cpu, default=as_usual)


_same.defvjp(_same_forward, _same_backward)
