"""IntroVAE's residual convolutional encoder and decoder, for images (docs/method.md, "Convolutional networks").

    encoder   conv5×5(c0) BN LeakyReLU, pool; block(c), pool for c in c1…ck; block(ck); dense 2·z_dim
    decoder   dense to [size/2^(k+1), size/2^(k+1), ck], ReLU; block(c), upsample for c in ck…c0; block(c0); conv5×5

With `classes`, both dense layers also take the one-hot label, appended to the flattened features and to z.

In training BatchNorm uses the statistics of the batch over all devices, in evaluation running averages; the decoder has
separate averages for posterior and prior samples. `dtype` is the dtype that layers compute in; parameters, BatchNorm's
statistics and the posterior are float32. `remat` recomputes each block in the backward pass instead of keeping its
activations: less memory, about a third more arithmetic.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sintrovae_jax.errors import UserError
from sintrovae_jax.models.convolution import (
    convolve,
    convolve_pairs,
    convolve_up,
    convolve_up_pairs,
    pairs,
    pool,
    pool_pairs,
    room_for_two,
    single,
    upsample,
    upsample_pairs,
)
from sintrovae_jax.models.family import Family
from sintrovae_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    Posterior,
    Statistics,
    decoder_statistics,
    split_posterior,
    with_labels,
)

_SLOPE = 0.2  # of LeakyReLU


class Block(nn.Module):
    """conv3×3 BN LeakyReLU conv3×3 BN, plus the shortcut, LeakyReLU. [B, H, W, in] -> [B, H, W, features].

    The shortcut is a 1×1 convolution if `features` differs from `in`. double: upsamples the input, fused into the first
    convolution: [B, 2H, 2W, features]; with `paired`, as pairs of pixels (`convolution`).
    """

    features: int
    statistics: Statistics
    dtype: jnp.dtype | None = None
    double: bool = False
    paired: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, width = x.shape[-1], self.features
        first, second, enlarge = convolve, convolve, lambda x: x
        if self.double:
            first, enlarge = (convolve_up_pairs, upsample_pairs) if self.paired else (convolve_up, upsample)
            second = convolve_pairs if self.paired else convolve
        shortcut = x if inputs == width else Conv(width, 1, inputs, self.dtype, name="shortcut")(x)
        x = Conv(width, 3, inputs, self.dtype, convolve=first, name="conv1")(x)
        x = nn.leaky_relu(BatchNorm(width, self.statistics, self.dtype, name="norm1")(x), _SLOPE)
        x = Conv(width, 3, width, self.dtype, convolve=second, name="conv2")(x)
        return nn.leaky_relu(BatchNorm(width, self.statistics, self.dtype, name="norm2")(x) + enlarge(shortcut), _SLOPE)


class Encoder(nn.Module):
    """x [B, H, W, C] in [0, 1] -> posterior over z [B, z_dim].

    paired: computes the full-size layers on pairs of pixels, if two pixels' channels fit a TPU's lanes.
    """

    channels: tuple[int, ...]
    z_dim: int
    dtype: jnp.dtype | None = None
    remat: bool = False
    paired: bool = False
    classes: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, groups: int = 1, labels: jax.Array | None = None
    ) -> Posterior:
        statistics = Statistics(train, groups)
        block = nn.remat(Block) if self.remat else Block
        first, *rest = self.channels
        paired, channels = self.paired and room_for_two(first), x.shape[-1]
        x, convolved, pooled = (pairs(x), convolve_pairs, pool_pairs) if paired else (x, convolve, pool)
        x = Conv(first, 5, channels, self.dtype, convolve=convolved, name="conv")(x)
        x = pooled(nn.leaky_relu(BatchNorm(first, statistics, self.dtype, name="norm")(x), _SLOPE))
        for i, features in enumerate(rest):
            x = pool(block(features, statistics, self.dtype, name=f"block{i}")(x))
        x = block(self.channels[-1], statistics, self.dtype, name="last")(x)
        x = with_labels(x.reshape(x.shape[0], -1), labels, self.classes)
        return split_posterior(Dense(2 * self.z_dim, self.dtype, name="posterior")(x))


class Decoder(nn.Module):
    """z [B, z_dim] -> x̂ [B, *shape]; `output`: 'linear' (not clipped to [0, 1]) or 'sigmoid'. paired: see `Encoder`."""

    channels: tuple[int, ...]
    shape: tuple[int, int, int]
    output: str = "linear"
    dtype: jnp.dtype | None = None
    remat: bool = False
    paired: bool = False
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
        statistics = decoder_statistics(train, groups, role)
        block = nn.remat(Block) if self.remat else Block
        height, width = (side // 2 ** len(self.channels) for side in self.shape[:2])
        z = with_labels(z, labels, self.classes)
        x = nn.relu(Dense(height * width * self.channels[-1], self.dtype, name="latent")(z))
        x = x.reshape(-1, height, width, self.channels[-1])
        for i, features in enumerate(reversed(self.channels)):
            x = block(features, statistics, self.dtype, double=i > 0, name=f"block{i}")(x)
        features = self.channels[0]
        paired = self.paired and room_for_two(features)
        x = block(features, statistics, self.dtype, double=True, paired=paired, name="last")(x)
        convolved = convolve_pairs if paired else convolve
        x = Conv(self.shape[2], 5, features, self.dtype, bias=True, convolve=convolved, name="conv")(x)
        x = single(x, self.shape[2]) if paired else x
        return nn.sigmoid(x) if self.output == "sigmoid" else x


def build(model: ConfigDict, shape: tuple[int, ...], dtype: jnp.dtype | None) -> tuple[Encoder, Decoder]:
    """The encoder and decoder of `config.model`. Raises `UserError` if they do not fit the examples."""
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
    encoder = Encoder(channels, model.z_dim, dtype, model.remat, classes=model.classes)
    return encoder, Decoder(channels, shape, model.output, dtype, model.remat, classes=model.classes)


FAMILY = Family(build, conditional=True)
