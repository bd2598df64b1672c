"""Augmentation of a batch of images: translation, hue jitter, flip, in this order (reference.md, section 3).

Every example's draw is a function of (seed, step, index of the example in the global batch). Images are [B, H, W, C],
uint8 or floats in [0, 1], and keep their type.
"""

from collections.abc import Callable

import tensorflow as tf

from sintrovae_jax.data.images import read_format
from sintrovae_jax.parallel import Shard

_STREAM = 2**61  # keeps these draws apart from those that make examples


def from_config(data) -> Callable | None:
    """What `config.data` asks for as a function (x, seed, step, shard) -> x, or None for no augmentation."""
    if not (data.translate or data.hue or data.flip):
        return None
    fill = read_format(data).fill

    def augment(x, seed: int, step: tf.Tensor, shard: Shard):
        stateless = tf.stack([tf.cast(seed, tf.int64), step + _STREAM])
        # Drawn for the whole global batch and cut, so that it does not matter how many processes share it.
        u = tf.random.stateless_uniform([shard.batch_size, 4], stateless)[shard.start : shard.stop]
        if data.translate:
            width = 2 * data.translate + 1
            by = tf.cast(tf.floor(u[:, :2] * width), tf.int32) - data.translate
            x = translate(x, by, fill)
        if data.hue:
            x = turn_hue(x, data.hue * (2 * u[:, 2] - 1))
        if data.flip:
            x = flip(x, u[:, 3] < 0.5)
        return x

    return augment


def translate(x: tf.Tensor, by: tf.Tensor, fill: tuple[int, ...]) -> tf.Tensor:
    """Moves each image down and right by `by` [B, 2] pixels; `fill` (0 to 255 a channel) comes in at the edges."""
    scale = 1 if x.dtype == tf.uint8 else 255
    fill = tf.cast(tf.constant(fill, tf.float32) / scale, x.dtype)
    for axis in (1, 2):
        size = x.shape[axis]
        source = tf.range(size)[None] - by[:, axis - 1, None]  # [B, size]
        inside = tf.logical_and(source >= 0, source < size)
        x = tf.gather(x, tf.clip_by_value(source, 0, size - 1), axis=axis, batch_dims=1)
        x = tf.where(inside[:, :, None, None] if axis == 1 else inside[:, None, :, None], x, fill)
    return x


def turn_hue(x: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
    """Turns each RGB image's colours by `by` [B] of the whole circle."""
    hsv = tf.image.rgb_to_hsv(tf.image.convert_image_dtype(x, tf.float32))
    hue = tf.math.floormod(hsv[..., :1] + by[:, None, None, None], 1.0)
    rgb = tf.image.hsv_to_rgb(tf.concat([hue, hsv[..., 1:]], -1))
    return tf.cast(tf.round(255 * rgb), tf.uint8) if x.dtype == tf.uint8 else rgb


def flip(x: tf.Tensor, which: tf.Tensor) -> tf.Tensor:
    """Mirrors left to right the images where `which` [B] is true."""
    return tf.where(which[:, None, None, None], x[:, :, ::-1], x)
