"""Standing statistics: BatchNorm's averages estimated anew for evaluation (reference.md, section 6).

In training the running averages remember about ten batches. Here each is the plain mean over many batches of what the
network sees: prior samples for the decoder, real images for the encoder, in batches of the size it was trained with.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from sintrovae_jax import parallel
from sintrovae_jax.inference import Model
from sintrovae_jax.models.layers import MOMENTUM
from sintrovae_jax.step import as_float


@functools.partial(jax.jit, static_argnums=0)
def _of_batch(module, variables, inputs):
    """The mean and variance that every BatchNorm sees in one batch."""
    nothing = jax.tree.map(jnp.zeros_like, variables["batch_stats"])

    def moved(inputs):
        return module.apply({**variables, "batch_stats": nothing}, inputs, train=True, mutable=["batch_stats"])[1]

    # One device, with the axis over which training takes BatchNorm's means. An average that was 0 moves to
    # (1 - momentum) times what the batch has.
    stats = jax.vmap(moved, axis_name=parallel.AXIS)(inputs[None])["batch_stats"]
    return jax.tree.map(lambda s: s[0] / (1 - MOMENTUM), stats)


def _mean(trees: Iterable):
    total, count = None, 0
    for count, tree in enumerate(trees, 1):  # noqa: B007
        total = tree if total is None else jax.tree.map(jnp.add, total, tree)
    return jax.tree.map(lambda x: x / count, total)


def estimate(model: Model, real: Iterable, key: jax.Array) -> Model:
    """The model with its BatchNorm averages estimated anew; itself where it has none.

    real: batches of training images [B, *shape], bytes or in [0, 1]; as many batches of prior samples are drawn.
    """
    real = list(real)
    inputs = {
        "encoder": map(as_float, map(jnp.asarray, real)),
        "decoder": (model.prior(jax.random.fold_in(key, i), len(batch)) for i, batch in enumerate(real)),
    }
    modules = {"encoder": model.encoder, "decoder": model.decoder}
    variables = dict(model.variables)
    for name, module in modules.items():
        if "batch_stats" in variables[name]:
            stats = _mean(_of_batch(module, variables[name], batch) for batch in inputs[name])
            variables[name] = {**variables[name], "batch_stats": stats}
    return dataclasses.replace(model, variables=variables)
