"""Sources of examples. Every batch is a function of (seed, step), so resuming costs nothing.

A source has two methods:

    train(seed, step, shard) -> tensor [shard's examples, *shape], this process's part of the batch of one step;
                                traced by tf.data, `step` is an int64 tensor
    test(n, seed)            -> float32 numpy array [n, *shape] (or all there are, if fewer) that training never sees
"""

import numpy as np
import tensorflow as tf

from sintrovae_jax.data.densities import DENSITIES
from sintrovae_jax.parallel import Shard

# Keeps evaluation's stream of fresh points apart from training's, whose stateless seeds are (seed, step).
_TEST_STREAM = 2**62


class Density:
    """A 2D density: every draw is fresh."""

    def __init__(self, name: str):
        self._sample = DENSITIES[name]

    def train(self, seed: int, step: tf.Tensor, shard: Shard) -> tf.Tensor:
        # The whole global batch is drawn and cut, so that it does not depend on how many processes share it.
        whole = self._sample(shard.batch_size, tf.stack([tf.cast(seed, tf.int64), step]))
        return whole[shard.start : shard.stop]

    def test(self, n: int, seed: int) -> np.ndarray:
        return self._sample(n, tf.constant([seed, _TEST_STREAM], tf.int64)).numpy()


class Arrays:
    """Images held in memory, visited in a new seeded order every epoch, each exactly once."""

    def __init__(self, train: np.ndarray, test: np.ndarray):
        self._train, self._test = tf.constant(train), test

    def train(self, seed: int, step: tf.Tensor, shard: Shard) -> tf.Tensor:
        count = int(self._train.shape[0])
        position = step * shard.batch_size + tf.range(shard.start, shard.stop, dtype=tf.int64)
        epoch, place = position // count, position % count
        # A pseudo-random permutation computed index by index: no shuffle buffer, nothing to restore.
        seeds = tf.stack([tf.fill(tf.shape(epoch), tf.cast(seed, tf.int64)), epoch, tf.zeros_like(epoch)], 1)
        seeds = tf.cast(tf.math.floormod(seeds, 2**31), tf.int32)
        order = tf.random_index_shuffle(place, seeds, tf.fill(tf.shape(place), tf.constant(count - 1, tf.int64)))
        return tf.gather(self._train, order)

    def test(self, n: int, seed: int) -> np.ndarray:
        del seed  # always the same first n
        return self._test[:n]


def digits(image_size: int) -> Arrays:
    """scikit-learn's handwritten digits, grey in [0, 1], resized (bicubic) from 8×8: 1,500 to train and 297 to test.

    The set comes ordered by writer; the split is a fixed shuffle of it, the same for every seed and size.
    """
    from sklearn.datasets import load_digits

    images = (load_digits().images / 16.0).astype(np.float32)[..., None]
    if image_size != 8:
        images = tf.image.resize(images, [image_size, image_size], "bicubic", antialias=True).numpy().clip(0, 1)
    images = images[np.random.default_rng(0).permutation(len(images))]
    return Arrays(images[:1500], images[1500:])
