"""Fully connected encoder and decoder, for 2D densities (docs/method.md, "2D densities") and very small images.

With `classes`, the encoder's last layer and the decoder's first layer also take the one-hot label.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sintrovae_jax.models.family import Family
from sintrovae_jax.models.layers import Dense, Posterior, split_posterior, with_labels


class Encoder(nn.Module):
    """x [B, ...] -> posterior over z [B, z_dim]: hidden layers with ReLU, then a layer of 2·z_dim."""

    channels: tuple[int, ...]
    z_dim: int
    dtype: jnp.dtype | None = None
    classes: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, groups: int = 1, labels: jax.Array | None = None
    ) -> Posterior:
        del train, groups  # nothing here depends on them
        x = x.reshape(x.shape[0], -1)
        for width in self.channels:
            x = nn.relu(Dense(width, self.dtype)(x))
        return split_posterior(Dense(2 * self.z_dim, self.dtype)(with_labels(x, labels, self.classes)))


class Decoder(nn.Module):
    """z [B, z_dim] -> x̂ [B, *shape]: the encoder's hidden layers in reverse; `output` is 'linear' or 'sigmoid'."""

    channels: tuple[int, ...]
    shape: tuple[int, ...]
    output: str = "linear"
    dtype: jnp.dtype | None = None
    classes: int = 0

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        train: bool = False,
        groups: int = 1,
        role: str = "posterior",
        labels: jax.Array | None = None,
    ) -> jax.Array:
        del train, groups, role
        z = with_labels(z, labels, self.classes)
        for width in reversed(self.channels):
            z = nn.relu(Dense(width, self.dtype)(z))
        x = Dense(math.prod(self.shape), self.dtype)(z).reshape(-1, *self.shape)
        return nn.sigmoid(x) if self.output == "sigmoid" else x


def build(model: ConfigDict, shape: tuple[int, ...], dtype: jnp.dtype | None) -> tuple[Encoder, Decoder]:
    """The encoder and decoder of `config.model`. Raises `UserError` if they do not fit the examples."""
    channels = tuple(model.channels)
    decoder = Decoder(channels, shape, model.output, dtype, model.classes)
    return Encoder(channels, model.z_dim, dtype, model.classes), decoder


FAMILY = Family(build, conditional=True)
