"""Standing statistics: BatchNorm's means and variances, re-estimated for evaluation.

The running averages of training cover about the last ten batches. Standing statistics are plain means over many batches
of the training batch size: real images for the encoder; for the decoder, separately, samples of their posteriors and
samples of the prior. They need training data, so they are kept in the workdir, in `standing/STEP.npz`.
"""

import dataclasses
import functools
import logging
import zlib
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sintrovae_jax import cancellation, files, npy, parallel, progress, workdirs
from sintrovae_jax.arrays import Tree
from sintrovae_jax.models import Model
from sintrovae_jax.models.layers import MOMENTUM, ROLES
from sintrovae_jax.passes import as_float

log = logging.getLogger(__name__)
_BATCHES, _CHECKSUM = "batches", "parameters"  # arrays of the file besides the statistics


@functools.partial(jax.jit, static_argnums=(0, 3))
def _batch_statistics(module, variables, inputs, groups, labels):
    """The network's outputs in training mode, `groups` batches as one, and every BatchNorm's mean and variance."""
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    options = {} if labels is None else {"labels": jnp.tile(labels, groups)}

    def moved(inputs):
        variables_ = {**variables, "batch_stats": zeros}
        return module.apply(variables_, inputs, train=True, groups=groups, mutable=["batch_stats"], **options)

    # One device, with the axis that training averages BatchNorm's statistics over. A running average that starts at 0
    # becomes (1 - momentum) times the statistic of the batch.
    out, stats = jax.vmap(moved, axis_name=parallel.AXIS)(inputs[None])
    first = functools.partial(jax.tree.map, lambda a: a[0])
    return first(out), jax.tree.map(lambda s: s / (1 - MOMENTUM), first(stats["batch_stats"]))


def _mean(trees: Iterable[Tree]) -> Tree:
    total, count = None, 0
    for count, tree in enumerate(trees, 1):  # noqa: B007
        total = tree if total is None else jax.tree.map(jnp.add, total, tree)
    return jax.tree.map(lambda x: x / count, total)


def estimate(model: Model, real: Iterable[Mapping[str, np.ndarray]], key: jax.Array) -> Model:
    """The model with standing statistics; the same model if it has no BatchNorm.

    real: batches of training images, {'x': [B, *shape]} of bytes or in [0, 1], with 'labels' [B] for a conditional
    model. As many batches of prior samples are drawn, with the same labels.
    """
    if not has_batch_norm(model):
        return model

    def of_batch(number, batch):
        cancellation.check()
        prior_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
        x, labels = as_float(jnp.asarray(batch["x"])), batch.get("labels")
        posterior, encoder_stats = _batch_statistics(model.encoder, model.variables["encoder"], x, 1, labels)
        z = posterior.sample(jax.random.normal(noise_key, posterior.mean.shape))
        both = jnp.concatenate([z, model.prior(prior_key, len(x))])  # in the order of ROLES
        _, decoder_stats = _batch_statistics(model.decoder, model.variables["decoder"], both, len(ROLES), labels)
        return {"encoder": encoder_stats, "decoder": decoder_stats}

    log.info("estimating BatchNorm's averages, from training batches")
    stats = _mean(of_batch(number, batch) for number, batch in enumerate(progress.counted(real, "batches")))
    return _with(model, stats)


def has_batch_norm(model: Model) -> bool:
    """Whether both networks have BatchNorm, whose statistics can be estimated."""
    return all("batch_stats" in model.variables[name] for name in ("encoder", "decoder"))


def _with(model: Model, stats: dict[str, Tree]) -> Model:
    variables = {name: {**model.variables[name], "batch_stats": stats[name]} for name in stats}
    return dataclasses.replace(model, variables=model.variables | variables, batch_norm="standing")


def _stats(model: Model) -> dict[str, Tree]:
    return {name: model.variables[name]["batch_stats"] for name in ("encoder", "decoder")}


def _checksum(model: Model) -> int:
    """A checksum of the parameters, so that statistics are not used with other parameters."""
    checksum = 0
    for name in ("encoder", "decoder"):
        for leaf in jax.tree.leaves(model.variables[name]["params"]):
            checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    return checksum


def write(model: Model, workdir: Path, keep: Container[int] | None = None) -> None:
    """Writes the standing statistics of a model, if it has any, to its workdir.

    keep: the steps whose files stay; None: all.
    """
    folder = workdir / workdirs.STANDING
    if model.batch_norm == "standing":
        about = {_BATCHES: model.config.eval.standing_batches, _CHECKSUM: _checksum(model)}
        with files.storing(folder), files.replacing(folder / f"{model.step}.npz") as temporary:
            np.savez(temporary, **about, **traverse_util.flatten_dict(_stats(model), sep="/"))
    if keep is not None and folder.is_dir():
        for path in folder.iterdir():
            if path.stem.isdecimal() and int(path.stem) not in keep:
                path.unlink(missing_ok=True)


def copy(workdir: Path, step: int, to: Path) -> None:
    """Copies the standing statistics that a workdir keeps for one step, if any, to another workdir."""
    name = Path(workdirs.STANDING) / f"{step}.npz"
    if (workdir / name).exists():
        with files.replacing(to / name) as temporary:
            temporary.write_bytes((workdir / name).read_bytes())


def _kind(x: np.ndarray | jax.Array) -> str:
    return f"{x.dtype} {x.shape}"


def read(model: Model, workdir: Path, batches: int | None = None) -> Model | None:
    """The model with the standing statistics that its workdir keeps; None if it keeps none for these parameters.

    batches: also returns None if they were not estimated from this many batches.
    """
    path = workdir / workdirs.STANDING / f"{model.step}.npz"
    try:
        arrays = npy.load_npz(path.read_bytes())
        checksum, count = (int(arrays.pop(name)) for name in (_CHECKSUM, _BATCHES))
        stats = traverse_util.unflatten_dict(arrays, sep="/")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # numpy and zipfile raise all kinds of errors for damaged files
        log.warning("%s cannot be read (%s)", path, parallel.first_line(error))
        return None
    as_asked = batches is None or count == batches
    fits = jax.tree.map(_kind, stats) == jax.tree.map(_kind, _stats(model))
    return _with(model, stats) if as_asked and fits and checksum == _checksum(model) else None
