"""The 2D densities of docs/method.md, "2D densities", sampled statelessly in TensorFlow.

Every function takes a count and a stateless seed of shape [2] and returns float32 points [n, 2].
"""

import math

import tensorflow as tf


def _uniform(n, seed, salt):
    return tf.random.stateless_uniform([n], tf.random.experimental.stateless_fold_in(seed, salt))


def _normal(shape, seed, salt):
    return tf.random.stateless_normal(shape, tf.random.experimental.stateless_fold_in(seed, salt))


def _choice(n, seed, salt, count):
    return tf.cast(tf.floor(_uniform(n, seed, salt) * count), tf.float32)


def gaussians8(n: int, seed: tf.Tensor) -> tf.Tensor:
    """Eight Gaussians of standard deviation 0.0141, every 45° on a circle of radius 1.414."""
    angle = _choice(n, seed, 0, 8) * (math.pi / 4)
    centre = 1.414 * tf.stack([tf.cos(angle), tf.sin(angle)], 1)
    return centre + 0.0141 * _normal([n, 2], seed, 1)


def spirals(n: int, seed: tf.Tensor) -> tf.Tensor:
    """Two interleaved spirals, both equally likely."""
    r = 3 * math.pi * tf.sqrt(_uniform(n, seed, 0))
    x = -tf.cos(r) * r + 0.5 * _uniform(n, seed, 1)
    y = tf.sin(r) * r + 0.5 * _uniform(n, seed, 2)
    sign = 2 * _choice(n, seed, 3, 2) - 1
    return sign[:, None] * tf.stack([x, y], 1) / 3 + 0.1 * _normal([n, 2], seed, 4)


def checkerboard(n: int, seed: tf.Tensor) -> tf.Tensor:
    """Eight dark squares of side 2 on a board of [-4, 4]²."""
    x1 = 4 * _uniform(n, seed, 0) - 2
    x2 = _uniform(n, seed, 1) - 2 * _choice(n, seed, 2, 2) + tf.math.floormod(tf.floor(x1), 2)
    return 2 * tf.stack([x1, x2], 1)


def rings(n: int, seed: tf.Tensor) -> tf.Tensor:
    """Four concentric circles of radii 3·{1, 3/4, 1/2, 1/4}, equally likely, noise 0.08."""
    radius = 3 * (1 + _choice(n, seed, 0, 4)) / 4
    angle = 2 * math.pi * _uniform(n, seed, 1)
    return radius[:, None] * tf.stack([tf.cos(angle), tf.sin(angle)], 1) + 0.08 * _normal([n, 2], seed, 2)


def gaussians25(n: int, seed: tf.Tensor) -> tf.Tensor:
    """Gaussians of standard deviation 0.025 at the 25 points of {-2, -1, 0, 1, 2}², equally likely."""
    centre = tf.stack([_choice(n, seed, axis, 5) for axis in range(2)], 1) - 2
    return centre + 0.025 * _normal([n, 2], seed, 2)


def moons(n: int, seed: tf.Tensor) -> tf.Tensor:
    """Two interlocking half circles of radius 2, equally likely, noise 0.1."""
    sign, angle = 2 * _choice(n, seed, 0, 2) - 1, math.pi * _uniform(n, seed, 1)
    upper = tf.stack([2 * tf.cos(angle) - 1, 2 * tf.sin(angle) - 0.5], 1)  # the lower one is rotated by 180°
    return sign[:, None] * upper + 0.1 * _normal([n, 2], seed, 2)


DENSITIES = {
    "gaussians8": gaussians8,
    "spirals": spirals,
    "checkerboard": checkerboard,
    "rings": rings,
    "gaussians25": gaussians25,
    "moons": moons,
}
