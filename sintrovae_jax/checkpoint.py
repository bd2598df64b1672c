"""Checkpoints with Orbax: saving, retention, restoring, and handling of damaged checkpoints.

A checkpoint has the items `networks` (the variables of both networks, and the prior if it is learnt) and `training`
(the step and the optimiser states). Depending on the config it also has `ema` (the averaged networks) and `target`
(bootstrap's decoder). All are plain arrays without a device axis, so that any number of devices or processes can read
them.
"""

import functools
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from sintrovae_jax import files, parallel, workdirs
from sintrovae_jax.arrays import Tree, Variables
from sintrovae_jax.errors import UserError
from sintrovae_jax.train_state import NetworkState, TrainState

log = logging.getLogger(__name__)
_SAVING = 600  # timeout of a save in seconds; if one process fails, the others wait this long for it
_ITEMS = ("networks", "training", "target", "ema")
_COMPRESSED = 1000  # the largest ratio of the size of a checkpoint's arrays to the size of its files


def _items(state: TrainState) -> dict[str, Tree]:
    training = {"step": state.step, "encoder": state.encoder.opt_state, "decoder": state.decoder.opt_state}
    if state.prior is not None:
        training["prior"] = state.prior.replace(mixture=None)  # the item `networks` has it
    items = {"networks": state.variables, "training": training, "target": state.target, "ema": state.ema}
    return {name: tree for name, tree in items.items() if tree is not None}


def _state(
    networks: dict[str, Variables],
    training: dict[str, Tree],
    target: Variables | None = None,
    ema: dict[str, Variables] | None = None,
) -> TrainState:
    def network(name):
        variables = dict(networks[name])
        return NetworkState(params=variables.pop("params"), stats=variables, opt_state=training[name])

    learnt = training["prior"].replace(mixture=networks["prior"]) if "prior" in training else None
    return TrainState(training["step"], network("encoder"), network("decoder"), target, ema, learnt)


def _template(tree):
    """Zeros of the tree's shapes. Restoring numpy arrays needs no device layout, so it works on any topology."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    """{'params/…/kernel': (3, 4), …}, whatever the tree's node types."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _size(folder: Path) -> int:
    """The bytes of all files of a step. Follows only links of the Hub's cache to its own files."""
    if files.is_remote(folder):
        remote = epath.Path(folder)
        return sum(_size(path) if path.is_dir() else path.stat().length for path in remote.iterdir())
    cache = _hub_cache(folder)
    paths = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(_followed(path, cache) if cache else path).st_size for path in paths)


def _hub_cache(folder: Path) -> str:
    """The Hub's cache of a step at CACHE/models--NAME/snapshots/COMMIT/checkpoints/STEP; '' for any other step."""
    parents = folder.parents
    inside = len(parents) > 4 and parents[2].name == "snapshots" and parents[3].name.startswith("models--")
    return os.path.realpath(parents[4]) if inside else ""


def _followed(path: str, cache: str) -> str:
    """The target of a link if it is a file in the cache; otherwise the path."""
    target = os.path.realpath(path)
    return target if os.path.isfile(target) and os.path.commonpath([target, cache]) == cache else path


@functools.cache
def _ignore_late_reads() -> None:
    """Keeps off stderr the tracebacks of reads that end after Orbax has given up on a damaged checkpoint."""
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            report(unraisable)

    sys.unraisablehook = hook


def forget_place(workdir: Path) -> None:
    """Removes from the checkpoints of a local workdir the path that they were written to.

    Orbax writes the path into a file. Later it checks only whether that file exists.
    """
    for path in (workdir / workdirs.CHECKPOINTS).rglob("commit_success.txt"):
        path.write_text("Checkpoint commit was successful\n")


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its check for preemption at every save.

    That check only logs, but it polls jax with the number of the training step, while `parallel.preempted` polls with
    its own count. Mixing them could lose a notice.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """The checkpoints of a workdir: the newest `keep`, and the best one by a metric of the evaluators.

    Raises `UserError` if a checkpoint's metadata cannot be read. Saving is asynchronous: its errors are raised by the
    next save, or by `close`.
    """

    def __init__(self, workdir: Path, keep: int = 1, best: str = "", best_mode: str = "min", read_only: bool = False):
        _ignore_late_reads()
        self.folder = files.place(workdir) / workdirs.CHECKPOINTS
        self._best, self._sign = best, -1 if best_mode == "min" else 1
        policies = [LatestN(keep)]
        if best:
            policies.append(BestN(n=1, get_metric_fn=self._rank))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else AnyPreservationPolicy(policies),
            # Orbax stores the metrics only if it is given a `best_fn`; the policies above decide which to keep.
            best_fn=self._rank if best else None,
            async_options=ocp.AsyncOptions(timeout_secs=_SAVING),
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ITEMS}
        try:
            self._manager = _Manager(self.folder, options=options, item_handlers=handlers)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OverflowError,
        ) as error:  # from a checkpoint's metadata
            reason = parallel.first_line(error)
            raise UserError(
                f"the checkpoints of {workdir} cannot be read ({reason}): move the damaged one away"
            ) from error

    def _rank(self, metrics: dict[str, float | None]) -> float:
        """Larger is better; a checkpoint that was not evaluated comes last."""
        value = metrics.get(self._best)
        return self._sign * value if isinstance(value, int | float) else -math.inf

    def steps(self) -> list[int]:
        """The steps of all checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the best evaluated checkpoint, or None if none was evaluated."""
        step = self._manager.best_step() if self._best else None
        return None if step is None or self._rank(self._manager.metrics(step) or {}) == -math.inf else step

    def save(self, state: TrainState, metrics: dict[str, Any] | None = None) -> None:
        """Saves a host state (`parallel.unreplicate`) under its step. metrics: the evaluators' metrics, for `best`."""
        # Only the main process has metrics, but all must agree on which checkpoint is the best.
        value = (metrics or {}).get(self._best)
        (value,) = parallel.from_main(math.nan if value is None else float(value))
        self._save(int(state.step), _items(state), {self._best: None if math.isnan(value) else value})

    def save_networks(self, step: int, variables: dict[str, Variables], ema: bool) -> None:
        """Saves only the networks to sample from, which are all that `read` needs. ema: whether they are averaged."""
        self._save(step, {"ema" if ema else "networks": variables}, None)

    def _save(self, step, items, metrics):
        args = ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in items.items()})
        with files.storing(self.folder):
            saved = self._manager.save(step, args=args, metrics=metrics, force=True)
        if not saved:
            raise RuntimeError(f"Orbax did not save step {step} to {self.folder}")

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest checkpoint that can be read, as numpy arrays, or None if there are no checkpoints.

        abstract: the state's shapes and dtypes. Newer checkpoints that are damaged are moved away and reported.
        Raises `UserError` for a checkpoint of another model, and if no checkpoint can be read (then none is moved).
        """
        damaged: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            state, problem = None, None
            try:
                self._refuse_other(step, abstract)
                state = _state(**{name: self._read(step, name, tree) for name, tree in _items(abstract).items()})
            except (UserError, PermissionError, MemoryError):
                raise
            except Exception as error:  # whatever Orbax and its storage layers raise on damaged files
                problem = error
            if parallel.agree(problem is None):
                for newer, reason in damaged:
                    self._set_aside(newer, reason)
                return state
            damaged.append((step, parallel.first_line(problem) if problem else "another process could not read it"))
        if damaged:
            step, reason = damaged[0]
            raise UserError(
                f"none of the {len(damaged)} checkpoints in {self.folder} can be read (step {step}: {reason}); "
                "move the folder away to start over"
            )
        return None

    def read(self, step: int, abstract: TrainState, ema: bool = True) -> dict[str, Variables]:
        """The networks of one step to sample from, as numpy arrays. ema: the averaged ones, if the run has them.

        Raises what Orbax raises, and `UserError` if the checkpoint is of another model or lacks these networks.
        """
        return self.read_all(step, abstract, ["ema" if ema and abstract.ema is not None else "networks"])[0]

    def read_all(self, step: int, abstract: TrainState, names: list[str]) -> list[Tree]:
        """The named items of one step: 'networks', 'target' or 'ema'. Raises as `read` does."""
        items, folder = _items(abstract), self.folder / str(step)
        kept, out = _size(folder), list[Tree]()
        for name in names:
            if not (folder / name).exists() and any((folder / other).exists() for other in _ITEMS):
                stored = " and ".join(other for other in _ITEMS if (folder / other).exists())
                raise UserError(f"{folder} has no {name}: {stored} alone, as an export has")
            if self._difference(step, name, items[name], kept):
                raise UserError(f"{folder} holds another model than the config.json beside it says")
            out.append(self._read(step, name, items[name]))
        return out

    def wait(self) -> None:
        """Waits for pending saves. Raises `Unavailable` if one failed because of its storage."""
        with files.storing(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and closes Orbax's manager."""
        with files.storing(self.folder):
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    def _read(self, step, item, abstract):
        # Each process reads by itself, without Orbax's barriers, so that a failing one does not leave others waiting.
        options = {}
        if jax.process_count() > 1:
            me = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(me, {me}, barrier_sync_key_prefix=f"process{me}")
            options = {"multiprocessing_options": alone}
        with ocp.Checkpointer(ocp.StandardCheckpointHandler(**options), **options) as checkpointer:
            args = ocp.args.StandardRestore(_template(abstract))
            return checkpointer.restore(self.folder / str(step) / item, args=args)

    def _refuse_other(self, step, abstract):
        kept = _size(self.folder / str(step))
        for item, tree in _items(abstract).items():
            if differ := self._difference(step, item, tree, kept):
                raise UserError(f"{self.folder / str(step)} holds another model: {differ}; use another --workdir")

    def _difference(self, step: int, item: str, tree: Tree, kept: int) -> str:
        """How the stored arrays of an item differ from a tree; '' if they do not. Allocates no arrays.

        kept: the bytes of the step's files. Raises what Orbax raises for damaged metadata, and `ValueError` for
        metadata that would make it allocate far more memory than the files can fill.
        """
        metadata = self._manager.item_metadata(step)[item]
        if metadata is None:
            raise ValueError(f"{item} has no metadata")
        for path, leaf in jax.tree_util.tree_flatten_with_path(metadata.tree)[0]:
            pieces = getattr(getattr(leaf, "storage", None), "chunk_shape", None) or ()
            if math.prod(pieces) > max(1, math.prod(leaf.shape)):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(f"{name} of shape {leaf.shape} is kept in pieces of {pieces}")
        stored = _shapes(metadata.tree)
        expected = _shapes(tree)
        differ = sorted(k for k in stored.keys() | expected.keys() if stored.get(k) != expected.get(k))
        if not differ:
            size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
            if size > _COMPRESSED * kept:
                raise ValueError(f"{kept} bytes of files are too few for {size} bytes of {item}")
            return ""
        first = differ[0]
        shape, wanted = (shapes.get(first) for shapes in (stored, expected))
        return f"{len(differ)} arrays differ, the first is {first} ({shape} there, {wanted} here)"

    def _set_aside(self, step, reason):
        place = self.folder.parent / workdirs.DAMAGED / str(step)
        number = 1
        while place.exists():
            place, number = place.with_name(f"{step}.{number}"), number + 1
        parallel.agree(True)  # all processes have chosen the same folder
        if parallel.is_main():
            files.move(self.folder / str(step), place)
        parallel.agree(True)  # all processes wait for the move
        log.warning("checkpoint %d is damaged (%s): moved to %s, using the one before it", step, reason, place)
        self._manager.reload()
