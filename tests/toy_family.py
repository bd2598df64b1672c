"""A network family as somebody would add it: one linear layer each way, a figure, and a method of its own."""

import math

import flax.linen as nn
import numpy as np

from sintrovae_jax.models.family import Family, Figure, Grid
from sintrovae_jax.models.layers import Posterior
from sintrovae_jax.models.trained import Model


class Encoder(nn.Module):
    z_dim: int

    @nn.compact
    def __call__(self, x, train=False, groups=1):
        mean_and_logvar = nn.Dense(2 * self.z_dim)(x.reshape(len(x), -1))
        return Posterior(mean_and_logvar[:, : self.z_dim], mean_and_logvar[:, self.z_dim :])


class Decoder(nn.Module):
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, z, train=False, groups=1, role="posterior"):
        return nn.Dense(math.prod(self.shape))(z).reshape(-1, *self.shape)


class ToyModel(Model):
    def filters(self) -> np.ndarray:
        """What each latent dimension draws, [Z, *shape]."""
        kernel = np.asarray(self.variables["decoder"]["params"]["Dense_0"]["kernel"])
        return kernel.reshape(-1, *self.shape)


def filters(model, source) -> Grid:
    del source
    return Grid(model.filters().clip(0, 1), 5)


def build(model, shape, dtype):
    del dtype
    return Encoder(model.z_dim), Decoder(shape)


FAMILY = Family(build, model=ToyModel, figures={"filters": Figure(filters, "filters")})
