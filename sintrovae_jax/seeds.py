"""What a seed means: which seeds there are, their keys, and the settings of jax under which they mean the same.

jax's configuration and environment variables (JAX_ENABLE_X64, JAX_DEFAULT_PRNG_IMPL, JAX_THREEFRY_PARTITIONABLE,
JAX_RANDOM_SEED_OFFSET) change what `jax.random` draws, and flax's FLAX_FIX_RNG_SEPARATOR what a module starts from. The
keys of this module, `pinned` and `init` leave them no say.
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

_x64 = jax if hasattr(jax, "enable_x64") else jax.experimental  # where jax 0.7 has it
LARGEST = 2**32 - 1
RANGE = f"a whole number from 0 to {LARGEST}"


def fits(seed: object) -> bool:
    """Whether this is a seed: a whole number that fits 32 bits, as jax and numpy would cut off the others."""
    return isinstance(seed, int | np.integer) and not isinstance(seed, bool) and 0 <= int(seed) <= LARGEST


def key(seed: object) -> jax.Array:
    """The key of a seed: that of `jax.random.key` with jax's defaults, a threefry key on all devices.

    Raises `UserError` for a seed that is not from 0 to 2³² - 1.
    """
    if not fits(seed):
        raise UserError(f"a seed is {RANGE}, not {seed!r}")
    return jax.random.wrap_key_data(jnp.array([0, seed], jnp.uint32), impl="threefry2x32")


def as_key(seed: int | np.integer[Any] | Array) -> jax.Array:
    """A jax key, itself or of a seed. Raises `UserError` for what is neither."""
    if isinstance(seed, jax.Array) and jax.dtypes.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return seed
    if isinstance(seed, jax.Array | np.ndarray) and seed.ndim == 1:  # a key of old style
        return jnp.asarray(seed)
    return key(seed)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Inside, types have 32 bits, and threefry and the promotion of arrays are as by default, whatever jax is set to.

    Also a decorator: `@pinned()`. It holds for this thread.
    """
    with (
        _x64.enable_x64(False),
        jax.threefry_partitionable(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def init(module: nn.Module, rngs: jax.Array | dict[str, jax.Array], *inputs: jax.Array, **options: Any) -> Variables:
    """The variables of `module.init`, a function of the keys, whatever jax and flax are set to. Traceable."""
    before = flax.config.flax_fix_rng_separator
    flax.config.update("flax_fix_rng_separator", False)
    try:
        with pinned():
            return dict(module.init(rngs, *inputs, **options))
    finally:
        flax.config.update("flax_fix_rng_separator", before)
