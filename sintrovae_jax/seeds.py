"""Seeds: their range, their keys, and fixed settings of jax, so that a seed always gives the same numbers.

jax's configuration and environment variables (JAX_ENABLE_X64, JAX_DEFAULT_PRNG_IMPL, JAX_THREEFRY_PARTITIONABLE,
JAX_RANDOM_SEED_OFFSET) change the numbers that `jax.random` draws, and flax's FLAX_FIX_RNG_SEPARATOR changes a module's
initial parameters. With the keys of this module, `pinned` and `init` they have no effect.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

from sintrovae_jax.arrays import Array, Variables
from sintrovae_jax.errors import UserError

_x64 = jax if hasattr(jax, "enable_x64") else jax.experimental  # jax 0.7 has it there
LARGEST = 2**32 - 1
RANGE = f"a whole number from 0 to {LARGEST}"


def fits(seed: object) -> bool:
    """Whether this is a seed: a whole number of at most 32 bits, because jax and numpy would cut off the rest."""
    return isinstance(seed, int | np.integer) and not isinstance(seed, bool) and 0 <= int(seed) <= LARGEST


def key(seed: object) -> jax.Array:
    """The key of a seed: the same as `jax.random.key` gives with jax's defaults, a threefry key on all devices.

    Raises `UserError` for a seed that is not from 0 to 2³² - 1.
    """
    if not fits(seed):
        raise UserError(f"a seed is {RANGE}, not {seed!r}")
    return jax.random.wrap_key_data(jnp.array([0, seed], jnp.uint32), impl="threefry2x32")


def as_key(seed: int | np.integer[Any] | Array) -> jax.Array:
    """Returns a jax key unchanged, and the key of a seed. Raises `UserError` for anything else."""
    if isinstance(seed, jax.Array) and jax.dtypes.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return seed
    if isinstance(seed, jax.Array | np.ndarray) and seed.ndim == 1:  # an old-style key
        return jnp.asarray(seed)
    return key(seed)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Within the block, whatever jax's settings, types have 32 bits, and threefry and promotion work as by default.

    Also a decorator: `@pinned()`. Affects only this thread.
    """
    with (
        _x64.enable_x64(False),
        jax.threefry_partitionable(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def init(module: nn.Module, rngs: jax.Array | dict[str, jax.Array], *inputs: jax.Array, **options: Any) -> Variables:
    """The variables of `module.init`, which depend only on the keys, not on settings of jax and flax. Traceable."""
    before = flax.config.flax_fix_rng_separator
    flax.config.update("flax_fix_rng_separator", False)
    try:
        with pinned():
            return dict(module.init(rngs, *inputs, **options))
    finally:
        flax.config.update("flax_fix_rng_separator", before)
