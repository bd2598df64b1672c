"""Differentiable augmentation of the encoder's inputs in training (docs/method.md, "Differentiable augmentation").

Each image is shifted with probability 1/2, and partly erased with probability 1/2. Both are linear in the pixels, so
the gradient of the decoder's loss reaches generated images through them.
"""

import jax
import jax.numpy as jnp

PROBABILITY = 0.5
_LARGEST_SHIFT = 1 / 8  # of the side, either way
_LARGEST_AREA = 1 / 2  # of the image, that is erased
_ASPECT = 3.0  # the largest ratio of the erased rectangle's sides


def augment(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Augments images [B, H, W, C], each with its own key [B]. Uncovered and erased pixels are 0."""
    return jax.vmap(_one)(keys, images)


def _one(key, image):
    shift_key, erase_key = jax.random.split(key)
    return image_erased(erase_key, image_shifted(shift_key, image))


def image_shifted(key: jax.Array, image: jax.Array) -> jax.Array:
    """With probability 1/2, an image [H, W, C] shifted by up to an eighth of its sides, by whole pixels."""
    due, where = jax.random.split(key)
    most = jnp.array([round(side * _LARGEST_SHIFT) for side in image.shape[:2]])
    offset = jax.random.randint(where, (2,), -most, most + 1)
    return shift(image, jnp.where(jax.random.bernoulli(due, PROBABILITY), offset, 0))


@jax.custom_vjp
def shift(image: jax.Array, offset: jax.Array) -> jax.Array:
    """An image [H, W, C] shifted down and right by `offset` [2], whole numbers; uncovered pixels are 0."""
    for axis in (0, 1):
        place = jnp.arange(image.shape[axis]) - offset[axis]
        inside = (place >= 0) & (place < image.shape[axis])
        moved = jnp.take(image, place, axis, mode="clip")
        image = jnp.where(jnp.expand_dims(inside, (1 - axis, 2)), moved, 0)
    return image


def _shift(image, offset):
    return shift(image, offset), offset


def _shift_back(offset, gradient):
    # The transpose is a shift the other way. The transpose of the gather would be a scatter, which is slow.
    return shift(gradient, -offset), None


shift.defvjp(_shift, _shift_back)


def image_erased(key: jax.Array, image: jax.Array) -> jax.Array:
    """With probability 1/2, an image [H, W, C] with a rectangle of up to half its area set to 0."""
    due, *keys = jax.random.split(key, 5)
    area, aspect, y, x = (jax.random.uniform(k) for k in keys)
    area *= _LARGEST_AREA
    limit = jnp.log(jnp.minimum(_ASPECT, 1 / area))  # both sides stay within the image
    sides = jnp.sqrt(area * jnp.exp(limit * jnp.array([2 * aspect - 1, 1 - 2 * aspect])))
    first = jnp.array([y, x]) * (1 - sides)

    def inside(axis):
        middle = (jnp.arange(image.shape[axis]) + 0.5) / image.shape[axis]
        return (middle >= first[axis]) & (middle < first[axis] + sides[axis])

    erased = inside(0)[:, None] & inside(1)[None] & jax.random.bernoulli(due, PROBABILITY)
    return jnp.where(erased[..., None], 0, image)
