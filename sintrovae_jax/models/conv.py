"""IntroVAE's residual convolutional encoder and decoder, for images (reference.md, section 3).

    encoder   conv5×5(c0) BN LeakyReLU, pool; block(c), pool for c in c1…ck; block(ck); dense 2·z_dim
    decoder   dense to [size/2^(k+1), size/2^(k+1), ck], ReLU; block(c), upsample for c in ck…c0; block(c0); conv5×5

BatchNorm normalises by the batch over all devices in training, and in evaluation by running averages, of which the
decoder has one set for posterior and one for prior samples. `dtype` is what layers compute in; parameters, BatchNorm's
statistics and the posterior are float32. `remat` recomputes each block in the backward pass instead of keeping its
activations: less memory, about a third more arithmetic.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sintrovae_jax.models.convolution import convolve, convolve_up, pool, upsample
from sintrovae_jax.models.layers import (
    BatchNorm,
    Dense,
    Posterior,
    Statistics,
    conv,
    decoder_statistics,
    split_posterior,
)

_SLOPE = 0.2  # of LeakyReLU


class Block(nn.Module):
    """conv3×3 BN LeakyReLU conv3×3 BN, plus the shortcut, LeakyReLU. [B, H, W, in] -> [B, H, W, features].

    The shortcut is a 1×1 convolution where `features` is not `in`. double: of the image upsampled first, which the
    first convolutions do as they go: [B, 2H, 2W, features].
    """

    features: int
    statistics: Statistics
    dtype: jnp.dtype | None = None
    double: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, width = x.shape[-1], self.features
        shortcut = x if inputs == width else conv(width, 1, inputs, self.dtype, "shortcut")(x)
        shortcut = upsample(shortcut) if self.double else shortcut
        x = conv(width, 3, inputs, self.dtype, "conv1", convolve=convolve_up if self.double else convolve)(x)
        x = nn.leaky_relu(BatchNorm(self.statistics, self.dtype, name="norm1")(x), _SLOPE)
        x = conv(width, 3, width, self.dtype, "conv2")(x)
        return nn.leaky_relu(BatchNorm(self.statistics, self.dtype, name="norm2")(x) + shortcut, _SLOPE)


class Encoder(nn.Module):
    """x [B, H, W, C] in [0, 1] -> posterior over z [B, z_dim]."""

    channels: tuple[int, ...]
    z_dim: int
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, groups: int = 1) -> Posterior:
        statistics = Statistics(train, groups)
        block = nn.remat(Block) if self.remat else Block
        first, *rest = self.channels
        x = conv(first, 5, x.shape[-1], self.dtype, "conv")(x)
        x = pool(nn.leaky_relu(BatchNorm(statistics, self.dtype, name="norm")(x), _SLOPE))
        for i, features in enumerate(rest):
            x = pool(block(features, statistics, self.dtype, name=f"block{i}")(x))
        x = block(self.channels[-1], statistics, self.dtype, name="last")(x)
        return split_posterior(Dense(2 * self.z_dim, self.dtype, name="posterior")(x.reshape(x.shape[0], -1)))


class Decoder(nn.Module):
    """z [B, z_dim] -> x̂ [B, *shape]; `output` is 'linear' (not clipped to [0, 1]) or 'sigmoid'."""

    channels: tuple[int, ...]
    shape: tuple[int, int, int]
    output: str = "linear"
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False, groups: int = 1, role: str = "posterior") -> jax.Array:
        statistics = decoder_statistics(train, groups, role)
        block = nn.remat(Block) if self.remat else Block
        height, width = (side // 2 ** len(self.channels) for side in self.shape[:2])
        x = nn.relu(Dense(height * width * self.channels[-1], self.dtype, name="latent")(z))
        x = x.reshape(-1, height, width, self.channels[-1])
        for i, features in enumerate(reversed(self.channels)):
            x = block(features, statistics, self.dtype, double=i > 0, name=f"block{i}")(x)
        x = block(self.channels[0], statistics, self.dtype, double=True, name="last")(x)
        x = conv(self.shape[2], 5, x.shape[-1], self.dtype, "conv", bias=True)(x)
        return nn.sigmoid(x) if self.output == "sigmoid" else x
