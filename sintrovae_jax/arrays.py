"""Types of arrays and of trees of them, by the names that annotations use."""

from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
Scalar = jax.Array | np.ndarray | float  # a number, or one that is traced
Tree = Any  # a pytree of arrays, such as the parameters of a network: jax has no narrower type for it
Variables = dict[str, Tree]  # what `flax.linen.Module.apply` takes: {'params': ..., 'batch_stats': ...}
