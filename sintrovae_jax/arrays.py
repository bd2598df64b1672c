"""Types for annotations: arrays and trees of arrays."""

from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
Scalar = jax.Array | np.ndarray | float  # a number, possibly traced
Tree = Any  # a pytree of arrays, such as a network's parameters; jax has no narrower type for it
Variables = dict[str, Tree]  # what `flax.linen.Module.apply` takes: {'params': ..., 'batch_stats': ...}
