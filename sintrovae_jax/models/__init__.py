"""Network families. `build` turns a config into an encoder and a decoder with one shared interface:

    encoder(x [B, *shape], train=..., groups=...)       -> Posterior(mean [B, Z], logvar [B, Z])
    decoder(z [B, Z], train=..., groups=..., role=...)  -> x̂ [B, *shape]

In training several batches may come as one, of `groups` equal parts, of which BatchNorm normalises each by itself. At
evaluation `role` ('posterior' or 'prior') says what a decoder decodes, and so which of its running averages are meant.
A family that grows (`grows`) also takes `stage`, and its decoder `keys` [B] for the noise it adds and `mix`.
A new family is a module here and a line in `FAMILIES`.
"""

import flax.linen as nn
import jax.numpy as jnp
import optax

from sintrovae_jax.errors import UserError
from sintrovae_jax.models import conv, mlp, style, two_encoder
from sintrovae_jax.models.layers import Posterior, Stage

__all__ = ["FAMILIES", "Posterior", "Stage", "build", "data_shape", "grows", "optimizer", "paired"]

# The type networks compute in; parameters, losses and statistics are float32 either way. None: the inputs' own type.
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def data_shape(data) -> tuple[int, ...]:
    """The shape of one example, from `config.data`: (2,) for points, (size, size, channels) for images."""
    return (data.image_size, data.image_size, data.image_channels) if data.image_size else (2,)


def _mlp(model, shape, dtype):
    channels = tuple(model.channels)
    return mlp.Encoder(channels, model.z_dim, dtype), mlp.Decoder(channels, shape, model.output, dtype)


def _conv(model, shape, dtype):
    channels, halvings = tuple(model.channels), len(model.channels)
    if len(shape) != 3:
        raise UserError("model.family=conv is for images: set data.image_size")
    if not channels:
        raise UserError("model.family=conv needs at least one width in model.channels")
    if shape[0] % 2**halvings:
        raise UserError(
            f"data.image_size={shape[0]} is not a multiple of {2**halvings}, as the {halvings} model.channels need, "
            "each of which halves the image"
        )
    decoder = conv.Decoder(channels, shape, model.output, dtype, model.remat)
    return conv.Encoder(channels, model.z_dim, dtype, model.remat), decoder


def _style(model, shape, dtype):
    channels = tuple(model.channels)
    if len(shape) != 3:
        raise UserError("model.family=style is for images: set data.image_size")
    if not channels:
        raise UserError("model.family=style needs model.channels")
    if shape[0] != style.resolution(len(channels) - 1):
        raise UserError(
            f"model.family=style with {len(channels)} model.channels makes images of "
            f"{style.resolution(len(channels) - 1)} pixels a side, not data.image_size={shape[0]}"
        )
    if model.output != "linear":
        raise UserError(f"model.family=style has no model.output={model.output}: set it to linear")
    encoder = style.Encoder(channels, model.z_dim, dtype, model.remat)
    return encoder, style.Decoder(channels, model.z_dim, shape[2], dtype, model.remat)


def _two_encoder(model, shape, dtype):
    channels, halvings = tuple(model.channels), len(model.channels) - 1
    if len(shape) != 3:
        raise UserError("model.family=two_encoder is for images: set data.image_size")
    if halvings < 1 or channels[-1] % 8:
        raise UserError(
            f"model.family=two_encoder needs two widths or more in model.channels, the last a multiple of 8: {channels}"
        )
    if shape[0] % 2**halvings:
        raise UserError(
            f"data.image_size={shape[0]} is not a multiple of {2**halvings}, as the {halvings + 1} model.channels "
            "need, each of which but the first halves the image"
        )
    if not 0 < model.class_dim < model.z_dim:
        raise UserError(
            f"model.class_dim={model.class_dim} must be at least 1 and leave some of model.z_dim={model.z_dim} for the "
            "content code"
        )
    if model.kernel < 3 or model.kernel % 2 == 0:
        raise UserError(f"model.kernel={model.kernel} must be an odd number of at least 3")
    encoder = two_encoder.Encoder(
        channels, model.kernel, model.hidden, model.z_dim, model.class_dim, dtype, model.remat
    )
    return encoder, two_encoder.Decoder(
        channels, model.kernel, model.class_dim, shape, model.output, dtype, model.remat
    )


FAMILIES = {"mlp": _mlp, "conv": _conv, "style": _style, "two_encoder": _two_encoder}


def grows(model) -> bool:
    """Whether `config.model` names a family whose networks grow from level to level."""
    return model.family == "style"


def build(model, shape: tuple[int, ...], dtype: str = "float32") -> tuple[nn.Module, nn.Module]:
    """The encoder and decoder that `config.model` names, for examples of this shape.

    Raises `UserError` for a family or dtype that does not exist.
    """
    if model.family not in FAMILIES:
        raise UserError(f"model.family={model.family!r} is none of {', '.join(FAMILIES)}")
    if dtype not in DTYPES:
        raise UserError(f"train.dtype={dtype!r} is none of {', '.join(DTYPES)}")
    return FAMILIES[model.family](model, shape, DTYPES[dtype])


def paired(network: nn.Module) -> nn.Module:
    """The same function of the same variables, computed on pairs of pixels (`convolution`) if the family knows how."""
    return network.clone(paired=True) if hasattr(network, "paired") else network


def optimizer(model) -> optax.GradientTransformation:
    """The family's optimiser without its learning rate, which is a traced argument of the step."""
    return style.optimizer() if model.family == "style" else optax.scale_by_adam()
