"""The style-based encoder and decoder of ALAE, which grow from 4×4 images up (docs/method.md, "Style-based networks").

There are L = len(channels) levels. Level k has images of 4·2^k pixels per side. channels[i] is the width of the blocks
whose input is the full resolution halved i times, in both encoder and decoder.

    encoder   from-RGB; block L-1-k … L-1, each halving and giving two styles; their sum; mapping to the posterior
    decoder   mapping from z to styles; a learned 4×4 constant; block 0 … k, each doubling, two styles each; to-RGB

The networks hold the parameters of all levels; `Stage` gives the highest level in use. Images are in [0, 1] outside the
networks and in [-1, 1] inside. Learning rates are equalised by the optimiser (`multipliers`), not in the layers.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from sintrovae_jax import parallel, seeds
from sintrovae_jax.arrays import Scalar, Tree
from sintrovae_jax.data.source import Source
from sintrovae_jax.errors import UserError
from sintrovae_jax.models.convolution import convolve, convolve_down, convolve_up, padded, pool, upsample
from sintrovae_jax.models.family import Family, Figure, Grid, Growth, table
from sintrovae_jax.models.layers import Posterior, Stage, split_posterior
from sintrovae_jax.models.trained import Interpolation, Model, Noise, Seed, between, line
from sintrovae_jax.objectives import at_least_float32

_GAINS = {"modulation": 1.0, "to_rgb": 0.03}  # by the prefix of a layer's name; other layers have √2
_MAPPING = 0.1  # lrmul of the mapping networks
_MAPPING_LAYERS = 8
_AVERAGE_STEP = 0.005  # of the running average of styles, towards the mean of a step's two decodings
_TRUNCATED = 8  # the number of layers that truncation affects, from the coarsest
_STD_EPSILON = 1e-8
_MIXED = 0.9  # the share of prior samples whose styles are mixed in training


def resolution(level: int) -> int:
    """Pixels per side of a level's images: 4, 8, 16…"""
    return 4 * 2**level


def equalization(layer: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(c, lrmul) of a layer with this name and this kernel shape: c = gain / sqrt(fan_in) · lrmul."""
    gain = next((gain for name, gain in _GAINS.items() if layer.startswith(name)), math.sqrt(2))
    lrmul = _MAPPING if layer.startswith("mapping") else 1.0
    return gain / math.sqrt(math.prod(shape[:-1])) * lrmul, lrmul


def multipliers(params: Tree) -> Any:
    """The factor of each parameter's optimiser step: c for a kernel, lrmul for a bias, 1 for the rest."""

    def one(path, leaf):
        layer, name = (key.key for key in path[-2:]) if len(path) > 1 else ("", path[-1].key)
        if name == "kernel":
            return equalization(layer, leaf.shape)[0]
        return _MAPPING if name == "bias" and layer.startswith("mapping") else 1.0

    return jax.tree_util.tree_map_with_path(one, params)


class EqualizedState(NamedTuple):
    """count: int32, the steps taken; nu: the running average of squared gradients, uncorrected."""

    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of this name
    nu: Tree


def optimizer(decay: float = 0.99, epsilon: float = 1e-8) -> optax.GradientTransformation:
    """Adam with β1 = 0, its step multiplied by sqrt(1 - β2^t) and by each parameter's multiplier.

    Unlike `optax.scale_by_adam(b1=0)` it keeps no first moment and adds epsilon to the uncorrected root, as in the
    published runs. The gradients of a scaled objective are small enough for this to matter.
    """

    def init(params):
        return EqualizedState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params):
        del params
        count = state.count + 1
        correction = jnp.sqrt(1 - decay ** count.astype(jnp.float32))
        nu = jax.tree.map(lambda v, g: decay * v + (1 - decay) * g * g, state.nu, grads)
        updates = jax.tree.map(
            lambda g, v, c: c * correction * g / (jnp.sqrt(v) + epsilon), grads, nu, multipliers(grads)
        )
        return updates, EqualizedState(count, nu)

    return optax.GradientTransformation(init, update)


def _kernel(module: nn.Module, *shape: int) -> jax.Array:
    c, lrmul = equalization(module.name or "", shape)
    return module.param("kernel", nn.initializers.normal(c / lrmul), shape)


class Dense(nn.Module):
    """[..., in] -> [..., features], with weights initialised for an equalised learning rate; biases start at 0.

    Always float32: vectors cost little, and an error in them affects every pixel.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _kernel(self, x.shape[-1], self.features)
        return x @ kernel + self.param("bias", nn.initializers.zeros, (self.features,))


_CONVOLVE = {"": convolve, "up": convolve_up, "down": convolve_down}


class Conv(nn.Module):
    """A convolution that keeps height and width, or with `resample` 'up' or 'down' doubles or halves them.

    Doubling repeats pixels before the convolution, halving averages 2×2 pixels after it. The published code fuses
    either with the convolution from 128 pixels up, with the same result; this layer always does.
    """

    features: int
    size: int = 3
    resample: str = ""
    bias: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _kernel(self, self.size, self.size, x.shape[-1], self.features)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.bias else 0.0
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _CONVOLVE[self.resample](x, kernel) + bias


def blur(x: jax.Array) -> jax.Array:
    """Convolves every channel with [1 2 1]⊗[1 2 1]/16, zero-padded. A sum of shifts is faster than a convolution."""
    x = padded(x)
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4


def instance_norm(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises each image's channels to mean 0, variance 1. Also returns their mean and std [B, C], float32."""
    y = at_least_float32(x)
    mean, var = y.mean((1, 2), keepdims=True), y.var((1, 2), keepdims=True)
    # Without the epsilon, the root of a constant channel's variance has an infinite gradient.
    std = jnp.sqrt(var + _STD_EPSILON)
    return ((y - mean) * lax.rsqrt(var + epsilon)).astype(x.dtype), mean[:, 0, 0], std[:, 0, 0]


def pixel_norm(z: jax.Array) -> jax.Array:
    """Scales every latent [B, Z] to a mean square of 1."""
    return z * lax.rsqrt(jnp.mean(z * z, axis=-1, keepdims=True) + 1e-8)


def truncated(styles: jax.Array, average: jax.Array, truncation: float) -> jax.Array:
    """Moves the first 8 layers of styles [B, layers, Z] towards the average [Z]: not at all at 1, fully at 0."""
    moved = average + truncation * (styles - average)
    return jnp.where(jnp.arange(styles.shape[1])[:, None] < _TRUNCATED, moved, styles)


def _blended(old: jax.Array, new: jax.Array, blend: Scalar) -> jax.Array:
    """Interpolates: exactly `old` at 0 and `new` at 1."""
    blend = jnp.asarray(blend, new.dtype)
    return (1 - blend) * old + blend * new


def blended_images(x: jax.Array, stage: Stage) -> jax.Array:
    """The input of a growing network: while a level is blended in, x [B, H, W, C] blended with its 2×2 averages."""
    return x if stage.level == 0 else _blended(upsample(pool(x)), x, stage.blend)


def _leaky(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, 0.2)


class EncoderBlock(nn.Module):
    """[B, H, W, in] -> [B, H/2, W/2, features] and the sum of two styles [B, z_dim]."""

    features: int
    z_dim: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, style1 = self._style(Conv(x.shape[-1], dtype=self.dtype, name="conv1")(x), "1")
        x = Conv(self.features, resample="down", dtype=self.dtype, name="conv2")(blur(x))
        x, style2 = self._style(x, "2")
        return x, style1 + style2

    def _style(self, x, layer):
        bias = self.param(f"bias{layer}", nn.initializers.zeros, (x.shape[-1],))
        x, mean, std = instance_norm(_leaky(x + bias.astype(x.dtype)), 1e-5)
        return x, Dense(self.z_dim, name=f"style{layer}")(jnp.concatenate([mean, std], -1))


class Encoder(nn.Module):
    """x [B, H, W, C] in [0, 1], of the stage's level -> posterior over z [B, z_dim]."""

    channels: tuple[int, ...]
    z_dim: int
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, groups: int = 1, stage: Stage | None = None) -> Posterior:
        del train, groups  # nothing here depends on them
        count = len(self.channels)
        level, blend = stage or Stage(count - 1)
        block = nn.remat(EncoderBlock) if self.remat else EncoderBlock

        # Features of the image at every level. Compiled code computes only the features in use, but all levels have
        # parameters from the start.
        features, image = {}, x
        for k in range(level, -1, -1):
            width = self.channels[count - 1 - k]
            rgb = Conv(width, 1, bias=True, dtype=self.dtype, name=f"from_rgb{k}")(2 * image - 1)
            features[k] = _leaky(_leaky(rgb))  # twice, as in the published networks
            image = pool(image) if k else image

        x, style = features[level], jnp.zeros(())
        for k in range(level, -1, -1):
            i = count - 1 - k
            width = self.channels[min(i + 1, count - 1)]
            x, own = block(width, self.z_dim, self.dtype, name=f"block{i}")(x)
            if k == level and k > 0:
                x, own = _blended(features[k - 1], x, blend), jnp.asarray(blend) * own
            style = style + own
        for i, width in enumerate((self.z_dim, self.z_dim, 2 * self.z_dim)):
            style = _leaky(Dense(width, name=f"mapping{i}")(style))
        return split_posterior(style)


class DecoderBlock(nn.Module):
    """[B, H, W, in] and two styles [B, 2, Z] -> [B, 2H, 2W, features]; block 0 takes the constant and keeps its size.

    keys: [B], for the noise that the block adds; None for the deterministic mode.
    """

    features: int
    index: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, styles: jax.Array, keys: jax.Array | None) -> jax.Array:
        if self.index > 0:
            x = blur(Conv(self.features, resample="up", dtype=self.dtype, name="conv1")(x))
        x = self._modulated(self._noised(x, keys, 1), styles[:, 0], 1)
        x = Conv(self.features, dtype=self.dtype, name="conv2")(x)
        return self._modulated(self._noised(x, keys, 2), styles[:, 1], 2)

    def _noised(self, x, keys, layer):
        weight = self.param(f"noise{layer}", nn.initializers.zeros, (x.shape[-1],))
        if keys is None:
            t = math.sqrt(self.index + 1)
            return x + 0.8 * t * jnp.exp(-x * x / (2 * t * t)) / math.sqrt(2 * math.pi)
        number, shape = 2 * self.index + layer, (*x.shape[1:3], 1)
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)
        return x + (weight * noise).astype(x.dtype)

    def _modulated(self, x, style, layer):
        bias = self.param(f"bias{layer}", nn.initializers.zeros, (x.shape[-1],))
        x, _, _ = instance_norm(_leaky(x + bias.astype(x.dtype)), 1e-8)
        modulation = Dense(2 * x.shape[-1], name=f"modulation{layer}")(style)[:, None, None]
        factor, shift = jnp.split(modulation, 2, axis=-1)
        return (x * (1 + factor) + shift).astype(x.dtype)


class Decoder(nn.Module):
    """z [B, z_dim] -> x̂ [B, H, W, C] of the stage's level, not clipped to [0, 1].

    keys: [B], for the noise of every layer; without keys, decoding is deterministic. mix: whether some layers of the
    last group take their styles from another latent, drawn with the keys (in training, for prior samples).
    """

    channels: tuple[int, ...]
    z_dim: int
    image_channels: int = 3
    dtype: jnp.dtype | None = None
    remat: bool = False

    def setup(self) -> None:
        block = nn.remat(DecoderBlock) if self.remat else DecoderBlock
        widths = tuple(reversed(self.channels))
        self.mapping = [Dense(self.z_dim, name=f"mapping{i}") for i in range(_MAPPING_LAYERS)]
        self.constant = self.param("constant", nn.initializers.ones, (4, 4, widths[0]))
        self.blocks = [block(width, i, self.dtype, name=f"block{i}") for i, width in enumerate(widths)]
        self.to_rgb = [Conv(self.image_channels, 1, bias=True, name=f"to_rgb{i}") for i in range(len(widths))]
        self.average = self.variable("averages", "style", jnp.zeros, (self.z_dim,))

    def __call__(
        self,
        z: jax.Array,
        train: bool = False,
        groups: int = 1,
        role: str = "posterior",
        stage: Stage | None = None,
        keys: jax.Array | None = None,
        mix: bool = False,
    ) -> jax.Array:
        del role  # there is no BatchNorm
        stage = stage or Stage(len(self.channels) - 1)
        w = self.style(z)
        if train and self.is_mutable_collection("averages"):
            mean = lax.stop_gradient(parallel.pmean(w.mean(0)))
            self.average.value += _AVERAGE_STEP * (mean - self.average.value)
        styles = jnp.repeat(w[:, None], 2 * (stage.level + 1), axis=1)
        if mix:
            assert keys is not None  # mixing draws with them
            *rest, last = jnp.split(styles, groups)
            styles = jnp.concatenate([*rest, self._mixed(last, keys[-len(last) :])])
        return self.synthesize(styles, stage, keys)

    def style(self, z: jax.Array) -> jax.Array:
        """z [B, Z] -> styles [B, Z], float32."""
        w = pixel_norm(z)
        for layer in self.mapping:
            w = _leaky(layer(w))
        return w

    def synthesize(self, styles: jax.Array, stage: Stage | None = None, keys: jax.Array | None = None) -> jax.Array:
        """Styles [B, 2·(level+1), Z] -> x̂ [B, H, W, C]."""
        level, blend = stage or Stage(len(self.channels) - 1)
        x = jnp.broadcast_to(self.constant, (styles.shape[0], *self.constant.shape))
        images = []  # one per level; compiled code computes only the last two, which are used
        for i in range(level + 1):
            x = self.blocks[i](x, styles[:, 2 * i : 2 * i + 2], keys)
            images.append(self.to_rgb[i](x))
        x = images[-1] if level == 0 else _blended(upsample(images[-2]), images[-1], blend)
        return (x + 1) / 2

    def _mixed(self, styles, keys):
        """For each example, with probability 0.9, all layers from a random cutoff on take another latent's style."""
        layers = styles.shape[1]

        def draw(key):
            coin, cutoff, latent = jax.random.split(jax.random.fold_in(key, 0), 3)
            kept = jax.random.randint(cutoff, (), 1, layers + 1)
            kept = jnp.where(jax.random.uniform(coin) < _MIXED, kept, layers)
            return kept, jax.random.normal(latent, (self.z_dim,))

        kept, z = jax.vmap(draw)(keys)
        return jnp.where((jnp.arange(layers) < kept[:, None])[..., None], styles, self.style(z)[:, None])


class StyleModel(Model):
    """A trained style-based model. The styles of its layers can be mixed, interpolated and truncated."""

    stage: Stage  # never None, because the networks grow

    paths: ClassVar[Mapping[str, Interpolation]] = MappingProxyType({**Model.paths, "style": line})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example at the level that the model has reached."""
        side = resolution(self.stage.level)
        return (side, side, super().shape[-1])

    @seeds.pinned()
    def styles(self, z: ArrayLike, truncation: float = 1.0) -> jax.Array:
        """z [N, Z] -> the styles of every layer [N, layers, Z], to be mixed and synthesised.

        truncation: how far the styles of the first 8 layers stay from the average of training; 1: they are unchanged,
        0: they are the average. Raises `UserError` for any other shape, or a truncation outside [0, 1].
        """
        if not 0 <= truncation <= 1:
            raise UserError(f"a truncation is from 0 to 1, not {truncation}")
        w = self._in_chunks("decoder", self._latents(z), staged=False, method="style")
        average = self.variables["decoder"]["averages"]["style"]
        return truncated(jnp.repeat(w[:, None], self._layers, 1), average, truncation)

    @seeds.pinned()
    def synthesize(self, styles: ArrayLike, noise: Noise = True) -> jax.Array:
        """Styles [N, layers, Z] -> x̂ [N, *shape], like `decode`. Raises `UserError` for any other shape."""
        styles, shape = jnp.asarray(styles, jnp.float32), (self._layers, self.config.model.z_dim)
        if styles.shape[1:] != shape:
            raise UserError(f"this model synthesises styles of shape [N, {shape[0]}, {shape[1]}], not {styles.shape}")
        return self._in_chunks("decoder", styles, self._keys(len(styles), noise), method="synthesize")

    def sample(self, key: Seed, n: int, truncation: float = 1.0, labels: ArrayLike | None = None) -> jax.Array:
        """n samples: decoded latents from the prior. key: a jax key or an int seed. Returns [n, *shape].

        truncation: see `styles`. labels: must be None, because these networks take no labels.
        """
        self._labels(labels, n)  # raises if labels are given
        if truncation == 1:
            return super().sample(key, n)
        return self.synthesize(self.styles(self.prior(key, n), truncation))

    @property
    def _layers(self):
        return 2 * (self.stage.level + 1)

    def _along(self, path, z_a, z_b, t, noise, labels=None):
        if path != "style":
            return super()._along(path, z_a, z_b, t, noise, labels)
        return self.synthesize(between(self.styles(z_a), self.styles(z_b), t, line), noise)


_ROWS = 8  # and columns of the table of mixed styles
_COLUMNS = 10  # of the figure of resolutions


def mixing(model: StyleModel, source: Source) -> Grid:
    """A table of samples: the first half of the layers has the style of the row, the second half of the column.

    The headers are the samples that have these styles in all layers.
    """
    del source
    styles = model.styles(model.prior(model.config.seed, 2 * _ROWS))
    layers = np.arange(styles.shape[1])[:, None]
    mixed = np.where(layers < len(layers) // 2, styles[:_ROWS, None], styles[None, _ROWS:])
    noise = np.arange(_ROWS).repeat(_ROWS)  # the same in all images of a row
    inside = np.asarray(model.synthesize(mixed.reshape(-1, *styles.shape[1:]), noise))
    own = np.asarray(model.synthesize(styles))
    return table(own[_ROWS:], own[:_ROWS], inside.reshape(_ROWS, _ROWS, *model.shape))


def resolutions(model: StyleModel, source: Source) -> Grid:
    """Test images above their reconstructions, at every level so far.

    A lower level's layers to and from RGB have not been trained since the next level was blended in.
    """
    rows: list[np.ndarray] = []
    side = model.shape[0]
    x = source.test(_COLUMNS, model.config.seed)
    for level in range(model.stage.level, -1, -1):
        stage = model.stage if level == model.stage.level else Stage(level)
        pair = np.stack([x, dataclasses.replace(model, stage=stage).reconstruct(x)])
        rows.insert(0, pair.repeat(side // x.shape[1], 2).repeat(side // x.shape[1], 3))
        x = np.asarray(pool(jnp.asarray(x)))
    return Grid(np.concatenate(rows).reshape(-1, *model.shape), len(rows[0][0]))


def build(model: ConfigDict, shape: tuple[int, ...], dtype: jnp.dtype | None) -> tuple[Encoder, Decoder]:
    """The encoder and decoder of `config.model`. Raises `UserError` if they do not fit the examples."""
    channels = tuple(model.channels)
    if len(shape) != 3:
        raise UserError("model.family=style is for images: set data.image_size")
    if not channels:
        raise UserError("model.family=style needs model.channels")
    if shape[0] != resolution(len(channels) - 1):
        raise UserError(
            f"model.family=style with {len(channels)} model.channels makes images of "
            f"{resolution(len(channels) - 1)} pixels a side, not data.image_size={shape[0]}"
        )
    if model.output != "linear":
        raise UserError(f"model.family=style has no model.output={model.output}: set it to linear")
    encoder = Encoder(channels, model.z_dim, dtype, model.remat)
    return encoder, Decoder(channels, model.z_dim, shape[2], dtype, model.remat)


FAMILY = Family(
    build,
    optimizer,
    Growth(resolution, blended_images),
    StyleModel,
    {"mixing": Figure(mixing, "sample"), "resolutions": Figure(resolutions, "reconstruct")},
)
