"""The Chamfer distance between point clouds, in memory that does not grow with the product of their sizes.

    chamfer(a, b) = Σ_i min_j |a_i - b_j|² + Σ_j min_i |a_i - b_j|²

The nearest points are searched without a gradient, in one pass over the table of distances for both directions, a few
rows at a time. The distances to the nearest points are then computed again from the points, and only this is
differentiated. The gradient is exact almost everywhere, and neither the table nor its gradient is held in memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

_AT_ONCE = 2**22  # distances in memory at once
_IN_CACHE = 2**18  # the same, on CPUs
_ROUNDING = 2e-6  # the largest relative rounding error of a float32 distance


def chamfer(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """Σ of squared distances to the other cloud's nearest point, both ways. x, x̂: [B, N, D], [B, M, D]. Returns [B]."""
    x, x_hat = (points.astype(jnp.promote_types(points.dtype, jnp.float32)) for points in (x, x_hat))
    on_cpu = functools.partial(nearest, at_once=_IN_CACHE)
    constants = lax.stop_gradient((x, x_hat))
    forth, back = lax.platform_dependent(*constants, cpu=on_cpu, default=nearest)
    return _squared(x, x_hat, forth) + _squared(x_hat, x, back)


def _squared(points: jax.Array, others: jax.Array, chosen: jax.Array) -> jax.Array:
    """Σ of the squared distances of points [B, N, D] to others[chosen], chosen: [B, N]. Returns [B]."""
    return jnp.square(points - jnp.take_along_axis(others, chosen[..., None], 1, mode="clip")).sum((1, 2))


def nearest(a: jax.Array, b: jax.Array, at_once: int = _AT_ONCE) -> tuple[jax.Array, jax.Array]:
    """For each point of a [B, N, D] the index of the nearest in b [B, M, D], int32 [B, N], and the reverse [B, M].

    If several points are equally near up to rounding, the first. at_once: approximate number of distances in memory; a
    row of the table, B·M, is never divided.
    """
    (batch, n, _), m = a.shape, b.shape[1]
    rows = min(n, max(1, at_once // (batch * m)))
    count = -(-n // rows)
    padded = jnp.pad(a, ((0, 0), (0, count * rows - n), (0, 0)), constant_values=jnp.inf)  # nearest to nothing
    pieces = jnp.moveaxis(padded.reshape(batch, count, rows, -1), 1, 0)

    def piece(best, inputs):
        number, points = inputs
        # Differences, not |a|² - 2a·b + |b|², whose rounding errors would change which point is nearest.
        squares = (jnp.square(points[:, :, None, axis] - b[:, None, :, axis]) for axis in range(a.shape[-1]))
        table = functools.reduce(jnp.add, squares)
        _, forth = _smallest(table, 2)
        least, back = _smallest(table, 1)
        distance, index = best
        nearer = least < distance
        best = jnp.where(nearer, least, distance), jnp.where(nearer, back + number * rows, index)
        return best, forth

    start = jnp.full((batch, m), jnp.inf, a.dtype), jnp.zeros((batch, m), jnp.int32)
    (_, back), forth = lax.scan(piece, start, (jnp.arange(count), pieces))
    return jnp.moveaxis(forth, 0, 1).reshape(batch, -1)[:, :n], back


def _smallest(table: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """The smallest values along an axis, and the first index of each.

    Uses two plain reductions, which CPUs vectorise; they compute an argmin one number at a time. The compiler may
    compute the table twice with different rounding, hence the tolerance.
    """
    least = table.min(axis, keepdims=True)
    places = jnp.arange(table.shape[axis], dtype=jnp.int32).reshape([-1 if i == axis else 1 for i in range(table.ndim)])
    return least.squeeze(axis), jnp.where(table <= least * (1 + _ROUNDING), places, table.shape[axis]).min(axis)
