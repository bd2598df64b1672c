"""Augmentation of a batch of images: translation, hue jitter, flip, in this order; or of clouds: rotation.

Each example's random draws are a function of (seed, step, index of the example in the global batch). Images are
[B, H, W, C], uint8 or floats in [0, 1], and keep their dtype; clouds are [B, points, 3].
"""

import functools
import math
from collections.abc import Callable

import tensorflow as tf
from ml_collections import ConfigDict

from sintrovae_jax.data.images import read_format
from sintrovae_jax.parallel import Shard

Augmentation = Callable[[tf.Tensor, int, tf.Tensor, Shard], tf.Tensor]  # (x, seed, steps, shard) -> x
_STREAM = 2**61  # keeps these draws apart from the draws that make examples


def from_config(data: ConfigDict) -> Augmentation | None:
    """The augmentation of `config.data` as a function (x, seed, steps, shard) -> x; None if there is none.

    x: this process's part of the batches of these steps (one step, or a vector of steps), one after the other.
    """
    if data.rotate:
        return functools.partial(_rotate, data.rotate)
    if not (data.translate or data.hue or data.flip):
        return None
    fill = read_format(data).fill

    def augment(x: tf.Tensor, seed: int, steps: tf.Tensor, shard: Shard) -> tf.Tensor:
        u = _draws(seed, steps, shard, 4)
        by = tf.cast(tf.floor(u[:, :2] * (2 * data.translate + 1)), tf.int32) - data.translate
        mirrored = u[:, 3] < (0.5 if data.flip else 0.0)
        # The flip may come before the hue change, which acts on single pixels.
        if data.translate:
            x = move(x, by, mirrored, fill)
        elif data.flip:
            x = flip(x, mirrored)
        return turn_hue(x, data.hue * (2 * u[:, 2] - 1)) if data.hue else x

    return augment


def _draws(seed: int, steps: tf.Tensor, shard: Shard, count: int) -> tf.Tensor:
    """`count` numbers from [0, 1) for each of this process's examples in these steps, [examples, count]."""

    def draw(step):
        stateless = tf.stack([tf.cast(seed, tf.int64), step + _STREAM])
        # Drawn for the whole global batch, then sliced, so that draws do not depend on the number of processes.
        return tf.random.stateless_uniform([shard.batch_size, count], stateless)[shard.start : shard.stop]

    return tf.reshape(tf.map_fn(draw, tf.reshape(steps, [-1]), fn_output_signature=tf.float32), [-1, count])


def _rotate(most: float, x: tf.Tensor, seed: int, steps: tf.Tensor, shard: Shard) -> tf.Tensor:
    return rotate(x, math.radians(most) * _draws(seed, steps, shard, 1)[:, 0])


def rotate(x: tf.Tensor, angles: tf.Tensor) -> tf.Tensor:
    """Turns each cloud [B, points, 3] about the axis y by an angle [B], in radians."""
    cos, sin = tf.cos(angles)[:, None], tf.sin(angles)[:, None]
    return tf.stack([cos * x[..., 0] + sin * x[..., 2], x[..., 1], cos * x[..., 2] - sin * x[..., 0]], -1)


def move(x: tf.Tensor, by: tf.Tensor, mirrored: tf.Tensor, fill: tuple[int, ...]) -> tf.Tensor:
    """Moves each image down and right by `by` [B, 2] pixels, then mirrors it left to right if `mirrored` [B].

    Uncovered edges are filled with `fill` (0 to 255 per channel). A single gather is several times faster than two.
    """
    count, height, width, channels = x.shape
    row = tf.range(height)[None] - by[:, :1]  # [B, H], of the source pixel
    column = tf.where(mirrored[:, None], tf.range(width)[::-1], tf.range(width)) - by[:, 1:]  # [B, W]
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    first = tf.range(count)[:, None, None] * (height * width)
    place = tf.where(inside, first + row[:, :, None] * width + column[:, None, :], count * height * width)
    fill = tf.cast(tf.constant([fill], tf.float32) / (1 if x.dtype == tf.uint8 else 255), x.dtype)
    return tf.gather(tf.concat([tf.reshape(x, [-1, channels]), fill], 0), place)


def flip(x: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
    """Mirrors the images with `mirrored` [B] left to right. TensorFlow is fastest with one image at a time."""

    def one(image, mirrored):
        return tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)

    return tf.map_fn(lambda pair: one(*pair), (x, mirrored), fn_output_signature=x.dtype)


def turn_hue(x: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
    """Turns each RGB image's colours by `by` [B] of the whole circle."""
    return tf.map_fn(lambda pair: tf.image.adjust_hue(*pair), (x, by), fn_output_signature=x.dtype)
