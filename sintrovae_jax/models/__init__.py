"""Network families. `build` turns a config into an encoder and a decoder with one shared interface:

    encoder(x [B, *shape], train=..., groups=...)       -> Posterior(mean [B, Z], logvar [B, Z])
    decoder(z [B, Z], train=..., groups=..., role=...)  -> x̂ [B, *shape]

In training the input may be `groups` concatenated batches of equal size, which BatchNorm normalises separately. In
evaluation `role` ('posterior' or 'prior') says which distribution z is from, which selects the decoder's running
averages. Conditional networks (`config.model.classes`) also take `labels` [B]. Networks that grow also take `stage`;
their decoder takes `keys` [B], for the noise that it adds, and `mix`.

To add a family, define a `Family` in a module and add it to `FAMILIES`, here or from outside the package.
"""

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from sintrovae_jax.errors import UserError
from sintrovae_jax.models import conv, mlp, point_cloud, style, two_encoder
from sintrovae_jax.models.family import Family
from sintrovae_jax.models.layers import Posterior, Stage
from sintrovae_jax.models.trained import Model

__all__ = ["FAMILIES", "Family", "Model", "Posterior", "Stage", "build", "family_of", "paired"]

FAMILIES: dict[str, Family] = {
    "mlp": mlp.FAMILY,
    "conv": conv.FAMILY,
    "style": style.FAMILY,
    "two_encoder": two_encoder.FAMILY,
    "point_cloud": point_cloud.FAMILY,
}
# The dtype that networks compute in; parameters, losses and statistics are always float32. None: the inputs' own dtype.
DTYPES = {"float32": None, "bfloat16": jnp.dtype(jnp.bfloat16)}


def family_of(model: ConfigDict) -> Family:
    """The family that `config.model` names. Raises `UserError` for one that does not exist."""
    if model.family not in FAMILIES:
        raise UserError(f"model.family={model.family!r} is none of {', '.join(FAMILIES)}")
    return FAMILIES[model.family]


def build(model: ConfigDict, shape: tuple[int, ...], dtype: str = "float32") -> tuple[nn.Module, nn.Module]:
    """The encoder and decoder that `config.model` names, for examples of this shape.

    Raises `UserError` for a family or dtype that does not exist, or a config that the family cannot build.
    """
    if dtype not in DTYPES:
        raise UserError(f"train.dtype={dtype!r} is none of {', '.join(DTYPES)}")
    encoder, decoder = family_of(model).build(model, shape, DTYPES[dtype])
    if not hasattr(encoder, "z_dim"):
        raise TypeError(f"the encoder of model.family={model.family} has no field z_dim, which a training step reads")
    if model.remat and not hasattr(encoder, "remat"):
        raise UserError(f"model.family={model.family} cannot recompute activations: set model.remat=False")
    return encoder, decoder


def paired(network: nn.Module) -> nn.Module:
    """The same function of the same variables, computed on pairs of pixels (`convolution`) if the family can."""
    return network.clone(paired=True) if hasattr(network, "paired") else network
