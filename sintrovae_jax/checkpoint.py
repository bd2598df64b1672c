"""Checkpoints with Orbax: saving, retention, restoring, and what to do with a damaged one.

A checkpoint has the items `networks` (both networks' variables), `training` (the step and the optimisers' states), and
where a run has them `ema` (the averaged networks) and `target` (bootstrap's decoder): plain arrays without a device
axis, so that any number of devices or processes can read it.
"""

import logging
import math
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from sintrovae_jax import files, parallel, workdirs
from sintrovae_jax.errors import UserError
from sintrovae_jax.train_state import NetworkState, TrainState

log = logging.getLogger(__name__)
_SAVING = 600  # seconds that a save may take; where one process fails at it, the others wait so long for it
_ITEMS = ("networks", "training", "target", "ema")


def _items(state: TrainState) -> dict:
    training = {"step": state.step, "encoder": state.encoder.opt_state, "decoder": state.decoder.opt_state}
    items = {"networks": state.variables, "training": training, "target": state.target, "ema": state.ema}
    return {name: tree for name, tree in items.items() if tree is not None}


def _state(networks: dict, training: dict, target: dict | None = None, ema: dict | None = None) -> TrainState:
    def network(name):
        variables = dict(networks[name])
        return NetworkState(params=variables.pop("params"), stats=variables, opt_state=training[name])

    return TrainState(training["step"], network("encoder"), network("decoder"), target, ema)


def _template(tree):
    """Restoring as numpy needs no device layout, so it works on any topology."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def _shapes(tree) -> dict:
    """{'params/…/kernel': (3, 4), …}, whatever the tree's node types."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


class _Manager(ocp.CheckpointManager):
    """Orbax's, which asks jax at every save whether to stop, by the number of the step, and only to note it down.

    That would disturb whoever asks by other numbers (`parallel.preempted`): a notice could be missed.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """The checkpoints of a workdir: `keep` newest ones, and the best by one figure of the evaluators.

    Saving is asynchronous; `close` waits for it and raises what went wrong.
    """

    def __init__(self, workdir: Path, keep: int = 1, best: str = "", best_mode: str = "min", read_only: bool = False):
        self.folder = files.place(workdir) / workdirs.CHECKPOINTS
        self._best, self._sign = best, -1 if best_mode == "min" else 1
        policies = [LatestN(keep)]
        if best:
            policies.append(BestN(n=1, get_metric_fn=self._rank))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else AnyPreservationPolicy(policies),
            # Orbax stores the metrics only if it is given a `best_fn`; the policies above decide what stays.
            best_fn=self._rank if best else None,
            async_options=ocp.AsyncOptions(timeout_secs=_SAVING),
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ITEMS}
        self._manager = _Manager(self.folder, options=options, item_handlers=handlers)

    def _rank(self, metrics: dict) -> float:
        """The larger the better; one that was not evaluated comes last."""
        value = metrics.get(self._best)
        return -math.inf if value is None else self._sign * value

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the best checkpoint that was evaluated, or None where none was."""
        step = self._manager.best_step() if self._best else None
        return None if step is None or self._rank(self._manager.metrics(step) or {}) == -math.inf else step

    def save(self, state: TrainState, metrics: dict | None = None) -> None:
        """Saves a host state (`parallel.unreplicate`) under its step. metrics: the evaluators', for `best`."""
        # Only the main process has metrics, but all must agree on which checkpoint is the best.
        value = (metrics or {}).get(self._best)
        (value,) = parallel.from_main(math.nan if value is None else float(value))
        self._save(int(state.step), _items(state), {self._best: None if math.isnan(value) else value})

    def save_networks(self, step: int, variables: dict, ema: bool) -> None:
        """Saves what `read` reads and nothing else: networks to sample from, averaged ones (`ema`) or not."""
        self._save(step, {"ema" if ema else "networks": variables}, None)

    def _save(self, step, items, metrics):
        args = ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in items.items()})
        if not self._manager.save(step, args=args, metrics=metrics, force=True):
            raise RuntimeError(f"Orbax did not save step {step} to {self.folder}")

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest checkpoint that can be read, as numpy arrays, or None where there are none.

        abstract: the state's shapes and dtypes. Damaged checkpoints newer than the one used are set aside and reported.
        Raises `UserError` for a checkpoint of another model, and where none of several can be read (then all stay).
        """
        damaged = []
        for step in reversed(self.steps()):
            self._refuse_other(step, abstract)
            state, problem = None, None
            try:
                state = _state(**{name: self._read(step, name, tree) for name, tree in _items(abstract).items()})
            except (PermissionError, MemoryError):
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

    def read(self, step: int, abstract: TrainState, ema: bool = True) -> dict:
        """One step's networks to sample from as numpy arrays. Raises what Orbax raises, and `UserError` where they are
        of another model or have been left out.

        ema: the averaged ones, where there are any.
        """
        return self.read_all(step, abstract, ["ema" if ema and abstract.ema is not None else "networks"])[0]

    def read_all(self, step: int, abstract: TrainState, names: list[str]) -> list[dict]:
        """Some of the items 'networks', 'target' and 'ema' of one step, as `read`."""
        items, out, folder = _items(abstract), [], self.folder / str(step)
        for name in names:
            if not (folder / name).exists() and any((folder / other).exists() for other in _ITEMS):
                there = " and ".join(other for other in _ITEMS if (folder / other).exists())
                raise UserError(f"{folder} has no {name}: {there} alone, as an export has")
            other = self._difference(step, name, items[name])
            tree = None if other else self._read(step, name, items[name])
            if other or _shapes(tree) != _shapes(items[name]):  # metadata may not tell
                raise UserError(f"{folder} holds another model than the config.json beside it says")
            out.append(tree)
        return out

    def close(self) -> None:
        """Waits for the saves under way. Raises if one failed."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _read(self, step, item, abstract):
        # Each process reads by itself, without Orbax's barriers: one that fails must not leave the others waiting.
        options = {}
        if jax.process_count() > 1:
            me = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(me, {me}, barrier_sync_key_prefix=f"process{me}")
            options = {"multiprocessing_options": alone}
        with ocp.Checkpointer(ocp.StandardCheckpointHandler(**options), **options) as checkpointer:
            args = ocp.args.StandardRestore(_template(abstract))
            return checkpointer.restore(self.folder / str(step) / item, args=args)

    def _refuse_other(self, step, abstract):
        for item, tree in _items(abstract).items():
            if differ := self._difference(step, item, tree):
                raise UserError(f"{self.folder / str(step)} holds another model: {differ}; use another --workdir")

    def _difference(self, step: int, item: str, tree) -> str:
        """How the arrays of an item differ from a tree's; '' where they do not, or where that cannot be told."""
        try:
            there = _shapes(self._manager.item_metadata(step)[item].tree)
        except Exception:  # damaged metadata: reading it will fail too, and say so
            return ""
        here = _shapes(tree)
        differ = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
        if not differ:
            return ""
        first = differ[0]
        there, here = (shapes.get(first) for shapes in (there, here))
        return f"{len(differ)} arrays differ, the first is {first} ({there} there, {here} here)"

    def _set_aside(self, step, reason):
        place = self.folder.parent / workdirs.DAMAGED / str(step)
        number = 1
        while place.exists():
            place, number = place.with_name(f"{step}.{number}"), number + 1
        parallel.agree(True)  # all have looked where to
        if parallel.is_main():
            files.move(self.folder / str(step), place)
        parallel.agree(True)  # all wait for the move
        log.warning("checkpoint %d is damaged (%s): moved to %s, using the one before it", step, reason, place)
        self._manager.reload()
