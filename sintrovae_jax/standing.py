"""Standing statistics: BatchNorm's means and variances, re-estimated for evaluation.

The running averages of training cover about the last ten batches. Standing statistics are plain means over many batches
of the training batch size: real images for the encoder; for the decoder, separately, samples of their posteriors and
samples of the prior.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from sintrovae_jax import cancellation, parallel, progress
from sintrovae_jax.arrays import Tree
from sintrovae_jax.inference import Model
from sintrovae_jax.models.layers import MOMENTUM, ROLES
from sintrovae_jax.train_step import as_float

log = logging.getLogger(__name__)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _of_batches(module, variables, inputs, groups):
    """The network's outputs in training mode, `groups` batches as one, and the mean and variance at every BatchNorm."""
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])

    def moved(inputs):
        variables_ = {**variables, "batch_stats": zeros}
        return module.apply(variables_, inputs, train=True, groups=groups, mutable=["batch_stats"])

    # One device, with the axis over which training takes BatchNorm's means. A running average that starts at 0 becomes
    # (1 - momentum) times the statistic of the batch.
    out, stats = jax.vmap(moved, axis_name=parallel.AXIS)(inputs[None])
    first = functools.partial(jax.tree.map, lambda a: a[0])
    return first(out), jax.tree.map(lambda s: s / (1 - MOMENTUM), first(stats["batch_stats"]))


def _mean(trees: Iterable[Tree]) -> Tree:
    total, count = None, 0
    for count, tree in enumerate(trees, 1):  # noqa: B007
        total = tree if total is None else jax.tree.map(jnp.add, total, tree)
    return jax.tree.map(lambda x: x / count, total)


def estimate(model: Model, real: Iterable[np.ndarray], key: jax.Array) -> Model:
    """The model with standing statistics; the same model if it has no BatchNorm.

    real: batches of training images [B, *shape], bytes or in [0, 1]; as many batches of prior samples are drawn.
    """
    if any("batch_stats" not in model.variables[name] for name in ("encoder", "decoder")):
        return model

    def of_batch(number, batch):
        cancellation.check()
        prior_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
        x = as_float(jnp.asarray(batch))
        posterior, of_encoder = _of_batches(model.encoder, model.variables["encoder"], x, 1)
        z = posterior.sample(jax.random.normal(noise_key, posterior.mean.shape))
        both = jnp.concatenate([z, model.prior(prior_key, len(x))])  # in the order of ROLES
        _, of_decoder = _of_batches(model.decoder, model.variables["decoder"], both, len(ROLES))
        return {"encoder": of_encoder, "decoder": of_decoder}

    log.info("estimating BatchNorm's averages, from training batches")
    stats = _mean(of_batch(number, batch) for number, batch in enumerate(progress.counted(real, "batches")))
    variables = {name: {**model.variables[name], "batch_stats": stats[name]} for name in stats}
    return dataclasses.replace(model, variables=model.variables | variables)
