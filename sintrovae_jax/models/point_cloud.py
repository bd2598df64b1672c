"""A PointNet encoder and a dense decoder, for point clouds (docs/clouds.md).

    encoder   every point: dense(c) ReLU BN for c in channels; maximum over points; dense(hidden) ReLU; dense 2·z_dim
    decoder   dense(c) ReLU for c in decoder_channels; dense 3·points, all x before all y before all z

The per-point dense layers have no bias. BatchNorm follows the ReLU, even in the last of these layers. Its statistics
are over all points of a batch, on all devices. The encoder does not depend on the order of the points.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from sintrovae_jax.errors import UserError
from sintrovae_jax.models.family import Family
from sintrovae_jax.models.layers import BatchNorm, Dense, Posterior, Statistics, split_posterior, uniform_fan_in


def _maximum(x: jax.Array) -> jax.Array:
    """The maximum over the points of x [B, points, C], [B, C]; if several are equal, the gradient goes to the first.

    The gradient of `max` divides by the number of values that equal the maximum. That number is 0 if the compiler
    recomputes x with other rounding.
    """
    first = jnp.argmax(lax.stop_gradient(x), 1, keepdims=True)
    return jnp.take_along_axis(x, first, 1, mode="clip")[:, 0]


class Encoder(nn.Module):
    """x [B, points, 3] -> posterior over z [B, z_dim]."""

    channels: tuple[int, ...]
    hidden: int
    z_dim: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, groups: int = 1) -> Posterior:
        statistics = Statistics(train, groups)
        for i, width in enumerate(self.channels):
            init = uniform_fan_in(x.shape[-1])
            x = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=init, name=f"point{i}")(x)
            x = BatchNorm(width, statistics, self.dtype, name=f"norm{i}")(nn.relu(x))
        x = nn.relu(Dense(self.hidden, self.dtype, name="hidden")(_maximum(x)))
        return split_posterior(Dense(2 * self.z_dim, self.dtype, name="posterior")(x))


class Decoder(nn.Module):
    """z [B, z_dim] -> x̂ [B, *shape]."""

    channels: tuple[int, ...]
    shape: tuple[int, int]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False, groups: int = 1, role: str = "posterior") -> jax.Array:
        del train, groups, role  # nothing here depends on them
        for i, width in enumerate(self.channels):
            z = nn.relu(Dense(width, self.dtype, name=f"hidden{i}")(z))
        points, axes = self.shape
        x = Dense(points * axes, self.dtype, name="points")(z)
        return x.reshape(-1, axes, points).swapaxes(1, 2)


def build(model: ConfigDict, shape: tuple[int, ...], dtype: jnp.dtype | None) -> tuple[Encoder, Decoder]:
    """The encoder and decoder of `config.model`. Raises `UserError` if they do not fit the examples."""
    if len(shape) != 2:
        raise UserError("model.family=point_cloud is for clouds: set data.source to shapes or clouds:PATH")
    if not model.channels:
        raise UserError("model.family=point_cloud needs at least one width in model.channels")
    if model.output != "linear":
        raise UserError(f"model.family=point_cloud gives coordinates: set model.output=linear, not {model.output}")
    encoder = Encoder(tuple(model.channels), model.hidden, model.z_dim, dtype)
    return encoder, Decoder(tuple(model.decoder_channels), (shape[0], shape[1]), dtype)


FAMILY = Family(build)
