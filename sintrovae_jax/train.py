"""The training loop: restore, step, log, draw, evaluate, save."""

import collections
import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import (
    checkpoint,
    dispatch,
    evaluators,
    files,
    inference,
    logs,
    ownership,
    parallel,
    provenance,
    reconstruction,
    schedule,
    seeds,
    standing,
    train_state,
    workdirs,
)
from sintrovae_jax import config as configs
from sintrovae_jax.arrays import Array, Tree
from sintrovae_jax.data import identity, pipeline
from sintrovae_jax.data.source import Source, check_labels
from sintrovae_jax.errors import Diverged, Interrupted, Unavailable, UserError
from sintrovae_jax.evaluators import evaluation, scoring
from sintrovae_jax.objectives import Hyper
from sintrovae_jax.plots import figures
from sintrovae_jax.preemption import Stop

log = logging.getLogger(__name__)
_IN_FLIGHT = 2  # dispatches queued on the devices; more would only delay the answer to a signal


# (level, step reached, state on the devices, {term: [sum, count, first bad]} on the devices)
Dispatch = tuple[schedule.Level, int, train_state.TrainState, dict[str, jax.Array]]


class Hypers:
    """The hyper-parameters of a dispatch, put on the devices only when they change."""

    def __init__(self, config: ConfigDict):
        self._config = config
        self._kept: tuple[Hyper, Hyper] | None = None  # on the host, and on the devices

    def at(self, start: int) -> Hyper:
        host = schedule.hypers_at(self._config, np.arange(start, start + self._config.train.substeps))
        if self._kept is None or any(np.any(a != b) for a, b in zip(host, self._kept[0], strict=True)):
            self._kept = host, parallel.replicate(host)
        return self._kept[1]


class Run:
    """Shared by the functions of the loop: the config, the static parts, the data and the checkpoints.

    check_owner: raises `UserError` if another run has taken over the workdir.
    """

    def __init__(self, config: ConfigDict, workdir: Path, check_owner: Callable[[], None]):
        self.config, self.workdir, self.check_owner = config, workdir, check_owner
        self.networks, self.static, self.create = dispatch.from_config(config)
        self.weights = reconstruction.weights(config.objective)
        self.source = pipeline.build(config.data)
        configs.refuse_other_data(config, self.source.identity, workdir)
        check_labels(config, self.source)
        self.kept: dict[Any, Any] = {}  # shared by all evaluations
        if parallel.is_main():  # only the main process evaluates
            evaluators.check_source(config, self.source, self.kept)
        parallel.refuse_different("the examples", (self.source.count, sorted(self.source.skipped)))
        c = config.checkpoint
        with files.storing(workdir):
            self.checkpoints = checkpoint.Checkpoints(workdir, c.keep, c.best, c.best_mode)

    def restore_or_create(self) -> train_state.TrainState:
        """The newest readable checkpoint, or a fresh state."""
        restored = self.checkpoints.restore(jax.eval_shape(self.create))
        if restored is None:
            log.info("creating the networks")
            return train_state.initial(self.create)
        log.info("resuming from step %d", restored.step)
        return restored

    def model(self, host: train_state.TrainState) -> inference.Model:
        """The model of a state, prepared for evaluation and figures."""
        return evaluation.prepared(inference.from_state(self.config, self.networks, host), self.source)

    def source_of(self, model: inference.Model) -> Source:
        """The images to evaluate the model with, at the level that it has reached."""
        return scoring.source_of(model, self.source)


def _advice(config: ConfigDict, step: int) -> str:
    """The hyper-parameter to change after a divergence at this step."""
    beta_neg = "growth.beta_neg" if config.growth.beta_neg else "objective.beta_neg"
    rate = "growth.learning_rates" if config.growth.learning_rates else "optimizer.learning_rate"
    repulsion = {"soft_intro": f"raise {beta_neg}", "intro": "lower objective.intro_alpha"}.get(config.objective.name)
    if repulsion and step >= config.objective.num_vae:
        return f"{repulsion} (weaker repulsion) or lower {rate}"
    return f"lower {rate}"


def refuse_divergence(config: ConfigDict, window: Sequence[tuple[int, Mapping[str, Array]]]) -> None:
    """Raises `Diverged` if a term of the window [(first step, {term: [sum, count, first bad]})] is not finite."""
    for start, terms in window:
        first = {name: float(term[2]) for name, term in terms.items()}
        name = min(first, key=lambda n: (first[n], n.startswith("loss")))  # terms first: losses only inherit their NaN
        if math.isfinite(first[name]):
            step = start + int(first[name])
            raise Diverged(f"step {step}: {name} became NaN or infinite; {_advice(config, step)}")


def refuse_bad_state(config: ConfigDict, host: train_state.TrainState) -> None:
    """Raises `Diverged` if the state holds NaN or infinity, so that none is ever saved."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(host)[0]:
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise Diverged(f"step {host.step}: {name} became NaN or infinite; {_advice(config, int(host.step))}")


def train(config: ConfigDict, workdir: Path, recipe: provenance.Recipe | None = None) -> None:
    """Trains to `config.train.steps`, resuming if the workdir has a checkpoint; ends with an evaluation.

    recipe: the recipe that the config was made from, if known, for the report.
    Raises `UserError`, also if another run is training in the workdir; `Diverged` (the last good checkpoint stays);
    `Interrupted` (a checkpoint was saved); or `Unavailable` (a checkpoint was saved if possible).
    """
    schedule.shards(config)  # raises if a batch does not divide
    with ownership.owned(workdir) as check_owner:
        configs.refuse_other(config, workdir)
        run = Run(config, workdir, check_owner)
        with Stop().listening() as stop, _closing(run.checkpoints.close):
            _train(run, stop, recipe)


@contextlib.contextmanager
def _closing(close: Callable[[], None]) -> Iterator[None]:
    """Calls `close` at the end of the block. An error of the block hides errors of `close`.

    `Interrupted` hides none, because it claims that everything is saved.
    """
    try:
        yield
    except Interrupted:
        close()
        raise
    except BaseException:
        with contextlib.suppress(Exception):
            close()
        raise
    close()


def _train(run, stop, recipe):
    config, workdir = run.config, run.workdir
    host = run.restore_or_create()
    first, last = int(host.step), config.train.steps
    if first > last:
        raise UserError(f"{workdir} is already at step {first}: train.steps={last} is behind it")
    results = workdirs.read_results(workdir)
    if parallel.is_main():
        run.check_owner()
        identity.write(run.source.identity, workdir)
        configs.write(config, workdir)
    done = first == last and results.get("step") == first
    if parallel.agree(done):  # all processes have read the results before the main one writes
        log.info("already trained to step %d: see %s", first, workdir / workdirs.RESULTS)
        return
    if parallel.is_main():
        provenance.write(workdir, run.source, first, recipe)
    writer = logs.Metrics(workdir, first, _other_writers(config, workdir)) if parallel.is_main() else None
    with _closing(writer.close if writer else lambda: None):
        _to_the_end(run, stop, host, writer)


def _other_writers(config, workdir):
    """The writers that the config asks for besides TensorBoard's."""
    if not config.log.wandb:
        return []
    from sintrovae_jax import wandb_writer

    writer = wandb_writer.start(config.log.wandb, workdir, configs.flatten(config))
    return [writer] if writer else []


def _to_the_end(run, stop, host, writer):
    """Trains from the host state to the last step, and finishes."""
    first, last = int(host.step), run.config.train.steps
    clock = logs.Clock(writer.seconds() if writer else 0.0)
    if first == 0 and parallel.is_main():
        _describe(run, host)
    host, metrics, model = _loop(run, host, writer, clock, stop)
    if writer:
        with stop.cancelling():
            _finish(run, model or run.model(host), metrics, writer, clock)
    if stop.agree():  # other processes wait: at exit they would give up on the main one after 5 minutes
        raise Interrupted(f"saved step {last} of {last}; run the same command again for its results", stop.signum)


def _dispatches(run: Run, host: train_state.TrainState) -> Iterator[Dispatch]:
    """Trains from the host state to the last step, one dispatch at a time, level by level if the networks grow.

    Yields (level, step reached, state on the devices, {term: [sum, count, first bad]} on the devices). The state is
    only valid until the next dispatch. Waits for the devices only between levels, and to keep at most `_IN_FLIGHT`
    dispatches queued.
    """
    for level in schedule.levels(run.config):
        first = max(level.start, int(host.step))
        if first < level.stop:
            if level.start and first == level.start:
                host = train_state.reset_optimizers(run.networks, host)
            host = yield from _level(run, host, level, first)


def _saving(run: Run, dispatches: Iterator[Dispatch]) -> Iterator[Dispatch]:
    """Yields the same dispatches. If the next one fails because of its data, saves the state before it.

    With several processes, one cannot save alone: the others wait for it in the step.
    """
    reached = None
    try:
        for reached in dispatches:
            yield reached
    except (Unavailable, UserError) as error:
        if reached is None or jax.process_count() > 1:
            raise
        _, step, devices_state, _ = reached
        raise type(error)(f"{error}; {_saved(run, step, devices_state)}") from error


def _saved(run: Run, step: int, devices_state: train_state.TrainState) -> str:
    """Saves a state on the devices, if it is not saved yet. Returns a message that says whether that worked."""
    host = parallel.unreplicate(devices_state)
    refuse_bad_state(run.config, host)
    try:
        run.check_owner()
        if step not in run.checkpoints.steps():
            run.checkpoints.save(host)
        run.checkpoints.wait()
    except Unavailable as error:
        return f"step {step} could not be saved: {error}"
    return f"saved step {step} of {run.config.train.steps}; run the same command again to go on"


def _level(run, host, level, first):
    """Yields the dispatches of one level, from step `first` on. Returns the level's final state, on the host."""
    config, substeps = run.config, run.config.train.substeps
    static = dataclasses.replace(run.static, level=level.number)
    num_vae = config.objective.num_vae if static.objective.encoder else 0
    vae_step = dispatch.on_devices(run.networks, dataclasses.replace(static, vae=True))
    step, key = dispatch.on_devices(run.networks, static), seeds.key(config.seed)
    weights = parallel.replicate(run.weights)
    steps = {"start": first, "stop": level.stop, "substeps": substeps, "shard": parallel.shard(level.batch_size)}
    source = run.source if level.size is None else run.source.at(level.size)
    labels = config.model.classes > 0
    batches = parallel.prefetch(pipeline.batches(source, config.data, seed=config.seed, labels=labels, **steps))
    hypers, devices_state = Hypers(config), parallel.replicate(host)
    in_flight: collections.deque[Tree] = collections.deque()
    for start in range(first, level.stop, substeps):
        phase_step = vae_step if start < num_vae else step  # num_vae is a multiple of substeps
        if start in (first, num_vae):
            log.info("compiling the step%s%s", " of the VAE phase" if start < num_vae else "", _at_size(level))
        devices_state, terms = phase_step(devices_state, next(batches), hypers.at(start), key, weights)
        in_flight.append(terms)
        if len(in_flight) > _IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        yield level, start + substeps, devices_state, terms
    return parallel.unreplicate(devices_state)


def _due(config: ConfigDict, step: int) -> dict[str, bool]:
    """The tasks that are due after this step, besides training."""
    last = step == config.train.steps

    def every(n):
        return n > 0 and step % n == 0

    return {
        "log": every(config.log.every),
        "draw": every(config.log.figures_every) and not last,
        "evaluate": every(config.eval.every) or last,
        "save": every(config.checkpoint.every) or last,
    }


def _loop(run, host, writer, clock, stop):
    """Trains to the last step. Returns the final host state, its metrics, and its model if one was built for them."""
    config, first, last = run.config, int(host.step), run.config.train.steps
    substeps = config.train.substeps
    metrics, model = {}, None
    window, pending = [], []  # terms since the last row: on the host, and still on the devices
    if stop.asked():  # a signal while the data were read: nothing to save
        raise Interrupted(f"still at step {first} of {last}; run the same command again to go on", stop.signum)
    progress = logs.Progress(first, last)
    for level, step, devices_state, terms in _saving(run, _dispatches(run, host)):
        pending.append((step - substeps, terms))
        if step - substeps in (first, level.start, config.objective.num_vae):  # do not time compilation
            jax.block_until_ready(terms)
            clock.resume()
        else:
            clock.count(substeps * level.batch_size)
        due, signum = _due(config, step), stop.asked()
        progress.advance(substeps, quiet=due["log"])
        if not any(due.values()) and not signum:
            continue

        arrived, pending = [(start, parallel.unreplicate(t)) for start, t in pending], []
        refuse_divergence(config, arrived)
        window += [t for _, t in arrived]
        rate = clock.pause()
        if due["log"]:
            row = {"seconds": clock.seconds(), "examples_per_second": rate} | _learning_rate(config, step)
            row |= logs.summarise(window)
            window = []
            if writer:
                writer.write(step, row)
                progress.report(step, row, rate and rate / level.batch_size)
        if signum:  # only save: there may be only a few seconds left
            due = {"draw": False, "evaluate": False, "save": True}
        if due["draw"] or due["evaluate"] or due["save"]:
            host = parallel.unreplicate(devices_state)
            refuse_bad_state(config, host)
            metrics, model, late_signum = _keep(run, host, due, writer, stop)
            signum = signum or late_signum
        if signum:  # not `stop.signum`, which may have arrived after the save
            progress.close()
            raise Interrupted(f"saved step {step} of {last}; run the same command again to go on", signum)
        clock.resume()
    progress.close()
    return host, metrics, model


def _keep(run, host, due, writer, stop):
    """Evaluates, draws and saves what is due. Returns the metrics if evaluated, the model if built, and a signal or 0.

    The signal is one that arrived meanwhile; in that case only the save is completed.
    """
    metrics, model, signum = {}, None, 0
    try:
        if writer and (due["evaluate"] or due["draw"]):  # only the main process
            with stop.cancelling():
                model = run.model(host)
                if due["evaluate"]:
                    metrics = evaluation.metrics_of(model, run.source_of(model), run.workdir, run.kept)
                    numbers = evaluation.numbers(metrics)  # some, like kl_gap, are also names of training's terms
                    writer.scalars(int(host.step), {f"eval/{name}": value for name, value in numbers.items()})
                if due["draw"]:
                    _draw(run, model, writer, f"_{model.step:07d}")
    finally:  # a checkpoint includes its metrics, for `best`, but is saved even if evaluation fails
        if due["evaluate"] or due["draw"]:
            signum = stop.agree()
        if due["evaluate"] or due["save"] or signum:
            run.check_owner()
            if writer:
                writer.flush()
                if model:
                    standing.write(model, run.workdir, keep={*run.checkpoints.steps(), model.step})
            run.checkpoints.save(host, evaluation.numbers(metrics))
    return metrics, model, signum


def _draw(run, model, writer, suffix=""):
    """Writes the figures to the workdir and to TensorBoard."""
    log.info("drawing figures")
    paths = figures.write_all(model, run.source_of(model), run.workdir, suffix)
    writer.figures(model.step, {path.stem.removesuffix(suffix): path for path in paths})


def _learning_rate(config: ConfigDict, step: int) -> dict[str, float]:
    return {"learning_rate": float(schedule.hypers_at(config, np.array(step - 1)).learning_rate)}


def _finish(run, model, metrics, writer, clock):
    """Writes figures and results.json. First evaluates if a killed run has none for its last step."""
    run.check_owner()
    if not metrics:
        metrics = evaluation.metrics_of(model, run.source_of(model), run.workdir, run.kept)
        standing.write(model, run.workdir)
    if run.config.log.figures:
        _draw(run, model, writer)
    training = {"seconds": clock.seconds(), "examples_per_second": clock.rate() or writer.rate()}
    evaluation.write_results(model, run.source, run.workdir, metrics, training)
    writer.flush()
    if run.config.log.report:
        _report(run.workdir)
    log.info("done: %s", run.workdir)


def _report(workdir):
    """Writes the report. A failure is only logged as a warning, because the trained networks are saved."""
    try:
        from sintrovae_jax.reports import report  # jinja2

        report.write(workdir)
    except Exception as error:  # no error of the report may fail a run that is complete
        log.warning("no %s: %s", workdirs.REPORT, parallel.first_line(error))


def _at_size(level: schedule.Level) -> str:
    return f", at {level.size} pixels" if level.size else ""


def _describe(run, host):
    """Logs a summary of the run: devices, batch, and a table of parameters."""
    from clu import parameter_overview

    for name, network in (("encoder", host.encoder), ("decoder", host.decoder)):
        log.info("%s\n%s", name, parameter_overview.get_parameter_overview(network.params, include_stats=False))
    for level, shard in zip(schedule.levels(run.config), schedule.shards(run.config), strict=True):
        log.info(
            "%d %s device(s), batch %d (%d a device), %d steps, %d a dispatch%s",
            jax.device_count(),
            jax.default_backend(),
            shard.batch_size,
            shard.per_device,
            level.stop - level.start,
            run.config.train.substeps,
            _at_size(level),
        )
