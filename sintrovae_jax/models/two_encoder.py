"""LORD's networks for translation: a class encoder, a content encoder, and an AdaIN generator.

See docs/method.md, "Translation networks"; Gabbay & Hoshen, ICLR 2020. With channels = (c0, c1, …, ck), n = kernel
(LORD: 7), and LeakyReLU 0.01 after every layer except the last ones:

    encoders    each: conv n×n(c0); conv4×4 at stride 2 (c) for c in c1…ck; dense `hidden`, `hidden`, 2·code
    generator   content code, dense to [size/2^k, size/2^k] × (ck/8, ck/4, ck); k times {upsample, conv3×3(ck),
                LeakyReLU, AdaIN by the class code}; conv (n-2)×(n-2)(c0); conv n×n to the image

The latent is one vector, the class code first. Both encoders see only the image. The generator's structure separates
the codes: the class code modulates the whole image by AdaIN, the content code determines the spatial layout.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from sintrovae_jax.data.source import Source
from sintrovae_jax.errors import UserError
from sintrovae_jax.models.convolution import convolve_half, convolve_up
from sintrovae_jax.models.family import Family, Figure, FigureOfTwo, Grid, table
from sintrovae_jax.models.layers import Conv, Dense, Posterior, split_posterior
from sintrovae_jax.models.trained import Model
from sintrovae_jax.objectives import at_least_float32

_SLOPE = 0.01  # of LeakyReLU
_EPSILON = 1e-5  # of instance norm


def _leaky(x):
    return nn.leaky_relu(x, _SLOPE)


class Tower(nn.Module):
    """One encoder: x [B, *shape] -> the posterior of a code, [B, code]."""

    channels: tuple[int, ...]
    kernel: int
    hidden: int
    code: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> Posterior:
        first, *rest = self.channels
        x = _leaky(Conv(first, self.kernel, x.shape[-1], self.dtype, bias=True, name="conv")(x))
        for i, features in enumerate(rest):
            half = Conv(features, 4, x.shape[-1], self.dtype, bias=True, convolve=convolve_half, name=f"half{i}")
            x = _leaky(half(x))
        x = x.reshape(x.shape[0], -1)
        for i in range(2):
            x = _leaky(Dense(self.hidden, self.dtype, name=f"dense{i}")(x))
        return split_posterior(Dense(2 * self.code, self.dtype, name="posterior")(x))


class Encoder(nn.Module):
    """x [B, *shape] -> posterior over z [B, z_dim]; the first `class_dim` dimensions are the class code."""

    channels: tuple[int, ...]
    kernel: int
    hidden: int
    z_dim: int
    class_dim: int
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, groups: int = 1) -> Posterior:
        del train, groups  # nothing here depends on them
        tower = nn.remat(Tower) if self.remat else Tower
        shared = (self.channels, self.kernel, self.hidden)
        class_code = tower(*shared, self.class_dim, self.dtype, name="class")(x)
        content_code = tower(*shared, self.z_dim - self.class_dim, self.dtype, name="content")(x)
        return Posterior(*(jnp.concatenate(parts, -1) for parts in zip(class_code, content_code, strict=True)))


def adain(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Instance norm, then weight·x + bias (Huang & Belongie 2017). x: [B, H, W, C]; weight, bias: [B, C]."""
    wide = at_least_float32(x)
    centred = wide - wide.mean((1, 2), keepdims=True)
    normed = centred * lax.rsqrt(jnp.square(centred).mean((1, 2), keepdims=True) + _EPSILON)
    return normed.astype(x.dtype) * weight[:, None, None] + bias[:, None, None]


class Block(nn.Module):
    """Upsample, conv3×3, LeakyReLU, AdaIN. x [B, H, W, C], modulation [B, 2C] -> [B, 2H, 2W, C]."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, modulation: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = _leaky(Conv(width, 3, width, self.dtype, bias=True, convolve=convolve_up, name="conv")(x))
        return adain(x, *jnp.split(modulation, 2, axis=-1))


class Decoder(nn.Module):
    """z [B, z_dim], the class code first -> x̂ [B, *shape]; `output` is 'linear' (not clipped) or 'sigmoid'."""

    channels: tuple[int, ...]
    kernel: int
    class_dim: int
    shape: tuple[int, int, int]
    output: str = "sigmoid"
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False, groups: int = 1, role: str = "posterior") -> jax.Array:
        del train, groups, role
        class_code, x = z[:, : self.class_dim], z[:, self.class_dim :]
        blocks, width = len(self.channels) - 1, self.channels[-1]
        height, side = (pixels // 2**blocks for pixels in self.shape[:2])
        for i, features in enumerate((width // 8, width // 4, width)):
            x = _leaky(Dense(height * side * features, self.dtype, name=f"dense{i}")(x))
        x = x.reshape(-1, height, side, width)
        modulations = jnp.split(Dense(blocks * 2 * width, self.dtype, name="modulation")(class_code), blocks, axis=-1)
        block = nn.remat(Block) if self.remat else Block
        for i, modulation in enumerate(modulations):
            x = block(self.dtype, name=f"block{i}")(x, modulation)
        x = _leaky(Conv(self.channels[0], self.kernel - 2, width, self.dtype, bias=True, name="conv")(x))
        x = Conv(self.shape[2], self.kernel, x.shape[-1], self.dtype, bias=True, name="image")(x)
        return nn.sigmoid(x) if self.output == "sigmoid" else x


class TwoEncoderModel(Model):
    """A trained two-encoder model, which separates an image's class from its content and can exchange them."""

    def codes(self, x: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """x [N, *shape] -> the posterior means of the class code [N, class_dim] and the content code [N, the rest]."""
        class_code, content_code = jnp.split(self.encode(x).mean, [self.config.model.class_dim], axis=-1)
        return class_code, content_code

    def translate(self, of_class: ArrayLike, of_content: ArrayLike) -> jax.Array:
        """Images with the class of `of_class` and the content of `of_content`, all [N, *shape].

        Decodes the posterior means of the two codes.
        """
        return self.decode(jnp.concatenate([self.codes(of_class)[0], self.codes(of_content)[1]], -1))


_ROWS = 8  # and columns of the table of translations


def translations(model: TwoEncoderModel, source: Source) -> Grid:
    """`translation_table` of the first test images; classes and contents come from different images."""
    x = source.test(2 * _ROWS, model.config.seed)
    half = -(-len(x) // 2)
    return translation_table(model, x[:half], x[-half:])


def translation(model: TwoEncoderModel, a: np.ndarray, b: np.ndarray) -> Grid:
    """`translation_table` of two images [*shape]: both classes with both contents."""
    both = np.stack([a, b])
    return translation_table(model, both, both)


def translation_table(model: TwoEncoderModel, of_class: np.ndarray, of_content: np.ndarray) -> Grid:
    """A table: every image has its column's class and its row's content.

    The headers are the images that give the class [N, *shape] and the content [M, *shape].
    """
    rows, columns = len(of_content), len(of_class)
    crossed = model.translate(np.tile(of_class, (rows, 1, 1, 1)), np.repeat(of_content, columns, 0))
    return table(of_class, of_content, np.asarray(crossed).reshape(rows, columns, *model.shape))


def build(model: ConfigDict, shape: tuple[int, ...], dtype: jnp.dtype | None) -> tuple[Encoder, Decoder]:
    """The encoder and decoder of `config.model`. Raises `UserError` if they do not fit the examples."""
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
    encoder = Encoder(channels, model.kernel, model.hidden, model.z_dim, model.class_dim, dtype, model.remat)
    return encoder, Decoder(channels, model.kernel, model.class_dim, shape, model.output, dtype, model.remat)


FAMILY = Family(
    build,
    model=TwoEncoderModel,
    figures={"translations": Figure(translations, "translate")},
    figures_of_two={"translate": FigureOfTwo("translation", translation)},
)
