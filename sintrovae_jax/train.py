"""The training loop: restore, step, log, picture, evaluate, save."""

import collections
import contextlib
import dataclasses
import logging
import math
import os
import signal
from pathlib import Path

import jax
import numpy as np

from sintrovae_jax import (
    checkpoint,
    evaluators,
    inference,
    logs,
    parallel,
    reconstruction,
    results,
    schedule,
    train_state,
    train_step,
)
from sintrovae_jax import config as configs
from sintrovae_jax.data import pipeline
from sintrovae_jax.errors import Diverged, Interrupted, UserError
from sintrovae_jax.evaluators import evaluation, scoring
from sintrovae_jax.plots import pictures

log = logging.getLogger(__name__)
_IN_FLIGHT = 2  # dispatches queued on the devices; more would only delay the answer to a signal
_LOOK = 0.5  # seconds between two looks for a signal where there are no dispatches


class _Abandoned(BaseException):
    """Ends an evaluation that there is no time for; no `except Exception` on its way is meant."""


class Stop:
    """SIGTERM and SIGINT ask to stop after the dispatch in flight; a second one gets its default effect.

    Several processes must stop at one step: there jax's own SIGTERM handler tells all of them (`parallel.preempted`),
    and SIGINT is handed on to it.
    """

    def __init__(self):
        self.signum = 0  # the signal that asked; with several processes, the same on all of them after `asked`
        self._polls = 0

    @contextlib.contextmanager
    def listening(self):
        several = jax.process_count() > 1
        signals = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
        before = {s: signal.getsignal(s) for s in signals}

        def handle(signum, _):
            if several:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self.signum = signum
            signal.signal(signum, before[signum])
            log.info("%s: stopping after what is under way", signal.Signals(signum).name)

        for s in signals:
            signal.signal(s, handle)
        try:
            yield self
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def asked(self) -> int:
        """The signal that asks to stop now, or 0. All processes must call it equally often; or one alone, within
        `abandoning`."""
        if not self.signum and jax.process_count() > 1:
            self._polls += 1
            self.signum = signal.SIGTERM if parallel.preempted(self._polls) else 0
        return self.signum

    @contextlib.contextmanager
    def abandoning(self):
        """What the main process does alone and may take minutes: it ends where it is, without an error, when a signal
        asks to stop. All processes must call `agree` after it, whatever it ends with."""

        inside = True

        def look(*_):
            if inside and self.asked():
                raise _Abandoned  # and again at the next look, should it get lost in somebody's callback

        before = signal.signal(signal.SIGALRM, look)
        signal.siginterrupt(signal.SIGALRM, False)  # libraries that wait for a disk or a server notice nothing
        signal.setitimer(signal.ITIMER_REAL, _LOOK, _LOOK)
        try:
            try:
                yield
            finally:
                inside = False
        except _Abandoned:
            log.info("stopping: the evaluation or picture under way is abandoned")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def agree(self) -> int:
        """All processes wait for the main one, and go on with its answer. Returns the signal that asked, or 0."""
        self._polls, self.signum = parallel.from_main(self._polls, int(self.signum))
        return self.signum


class Hypers:
    """The hyper-parameters of a dispatch, put on the devices only when they change."""

    def __init__(self, config):
        self._config, self._host, self._devices = config, None, None

    def at(self, start: int):
        host = schedule.hypers_at(self._config, np.arange(start, start + self._config.train.substeps))
        if self._host is None or any((a != b).any() for a, b in zip(host, self._host, strict=True)):
            self._host, self._devices = host, parallel.replicate(host)
        return self._devices


class Run:
    """What the loop's functions share: the config, the static parts, and where things are written."""

    def __init__(self, config, workdir: Path):
        self.config, self.workdir = config, workdir
        self.networks, self.static, self.create = train_step.from_config(config)
        self.weights = reconstruction.weights(config.objective)
        self.source = pipeline.build(config.data)
        self.kept = {}  # what evaluations share
        if parallel.is_main():  # which evaluates
            evaluators.check_source(config, self.source, self.kept)
        parallel.refuse_different("the examples", (self.source.count, sorted(self.source.skipped)))
        c = config.checkpoint
        self.checkpoints = checkpoint.Checkpoints(workdir, c.keep, c.best, c.best_mode)

    def restore_or_create(self) -> train_state.TrainState:
        """The newest sound checkpoint, or a fresh state."""
        restored = self.checkpoints.restore(jax.eval_shape(self.create))
        if restored is None:
            return train_state.initial(self.create)
        log.info("resuming from step %d", restored.step)
        return restored

    def model(self, host: train_state.TrainState) -> inference.Model:
        """The state's model as it is scored and pictured."""
        return evaluation.prepared(inference.from_state(self.config, self.networks, host), self.source)

    def source_of(self, model: inference.Model):
        """The images that the model is scored with: of the level it has reached."""
        return scoring.source_of(model, self.source)


def _advice(config, at: int) -> str:
    """Which hyper-parameter to move after a divergence at this step."""
    beta_neg = "growth.beta_neg" if config.growth.beta_neg else "objective.beta_neg"
    rate = "growth.learning_rates" if config.growth.learning_rates else "optimizer.learning_rate"
    repulsion = {"soft_intro": f"raise {beta_neg}", "intro": "lower objective.intro_alpha"}.get(config.objective.name)
    if repulsion and at >= config.objective.num_vae:
        return f"{repulsion} (weaker repulsion) or lower {rate}"
    return f"lower {rate}"


def refuse_divergence(config, window: list[tuple[int, dict]]) -> None:
    """Raises `Diverged` if a term of the window [(first step, {term: [sum, count, first bad]})] is not finite."""
    for start, terms in window:
        first = {name: float(term[2]) for name, term in terms.items()}
        name = min(first, key=lambda n: (first[n], n.startswith("loss")))  # a loss only repeats what its terms say
        if math.isfinite(first[name]):
            at = start + int(first[name])
            raise Diverged(f"step {at}: {name} became NaN or infinite; {_advice(config, at)}")


def refuse_bad_state(config, host: train_state.TrainState) -> None:
    """Raises `Diverged` if the state holds NaN or infinity, so that no checkpoint ever does."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(host)[0]:
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise Diverged(f"step {host.step}: {name} became NaN or infinite; {_advice(config, int(host.step))}")


def train(config, workdir: Path) -> None:
    """Trains to `config.train.steps`, resuming if the workdir has a checkpoint; ends with an evaluation.

    Raises `UserError`, `Diverged` (the last good checkpoint stays) or `Interrupted` (a checkpoint was saved).
    """
    schedule.shards(config)  # whether the batches divide
    run = Run(config, workdir)
    try:
        with Stop().listening() as stop:
            _train(run, stop)
    finally:
        run.checkpoints.close()


def _train(run, stop):
    config, workdir = run.config, run.workdir
    host = run.restore_or_create()
    first, last = int(host.step), config.train.steps
    if first > last:
        raise UserError(f"{workdir} is already at step {first}: train.steps={last} is behind it")
    if parallel.is_main():
        configs.write(config, workdir)
    done = first == last and results.read(workdir).get("step") == first
    if parallel.agree(done):  # all have looked before the main one writes
        log.info("already trained to step %d: see %s", first, workdir / results.FILE)
        return
    metrics = logs.Metrics(workdir, first) if parallel.is_main() else None
    clock = logs.Clock(metrics.seconds() if metrics else 0.0)
    if first == 0 and parallel.is_main():
        _describe(run, host)
    try:
        host, figures, model = _loop(run, host, metrics, clock, stop)
        if metrics:
            with stop.abandoning():
                _finish(run, model or run.model(host), figures, metrics, clock)
        if stop.agree():  # the others wait: on their way out they would give the main process up after five minutes
            raise Interrupted(f"saved step {last} of {last}; run the same command again for its results", stop.signum)
    finally:
        if metrics:
            metrics.close()


def _dispatches(run, host: train_state.TrainState):
    """Trains from the host state to the last step, one dispatch at a time, level after level if the networks grow.

    Yields (level, step reached, state on the devices, {term: [sum, count, first bad]} on the devices). The state is
    only good until the next dispatch. Nothing here waits for the devices, except to keep `_IN_FLIGHT` dispatches queued
    at most, and between levels.
    """
    for level in schedule.levels(run.config):
        first = max(level.start, int(host.step))
        if first < level.stop:
            if level.start and first == level.start:
                host = train_state.reset_optimizers(run.networks, host)
            host = yield from _level(run, host, level, first)


def _level(run, host, level, first):
    """The dispatches of one level, from step `first` on. Returns the state it ends with, on the host."""
    config, substeps = run.config, run.config.train.substeps
    static = dataclasses.replace(run.static, level=level.number)
    num_vae = config.objective.num_vae if static.objective.encoder else 0
    vae_step = train_step.on_devices(run.networks, dataclasses.replace(static, vae=True))
    step, key = train_step.on_devices(run.networks, static), parallel.seed_key(config.seed)
    weights = parallel.replicate(run.weights)
    steps = {"start": first, "stop": level.stop, "substeps": substeps, "shard": parallel.shard(level.batch_size)}
    source = run.source if level.size is None else run.source.at(level.size)
    batches = parallel.prefetch(pipeline.batches(source, config.data, seed=config.seed, **steps))
    hypers, devices_state, in_flight = Hypers(config), parallel.replicate(host), collections.deque()
    for start in range(first, level.stop, substeps):
        of_phase = vae_step if start < num_vae else step  # num_vae is a multiple of substeps
        devices_state, terms = of_phase(devices_state, next(batches), hypers.at(start), key, weights)
        in_flight.append(terms)
        if len(in_flight) > _IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        yield level, start + substeps, devices_state, terms
    return parallel.unreplicate(devices_state)


def _due(config, at: int) -> dict[str, bool]:
    """What happens at this step, besides training."""
    last = at == config.train.steps

    def every(n):
        return n > 0 and at % n == 0

    return {
        "log": every(config.log.every),
        "draw": every(config.log.figures_every) and not last,
        "evaluate": every(config.eval.every) or last,
        "save": every(config.checkpoint.every) or last,
    }


def _loop(run, host, metrics, clock, stop):
    """Dispatches until the last step; returns the final host state, its figures and its model as they were made."""
    config, first, last = run.config, int(host.step), run.config.train.steps
    substeps = config.train.substeps
    figures, model = {}, None
    window, pending = [], []  # terms of this log step: on the host, and still on the devices
    if stop.asked():  # while the data was looked through: nothing to save
        raise Interrupted(f"still at step {first} of {last}; run the same command again to go on", stop.signum)
    progress = logs.Progress(first, last)
    for level, at, devices_state, terms in _dispatches(run, host):
        pending.append((at - substeps, terms))
        progress.advance(substeps)
        if at - substeps in (first, level.start, config.objective.num_vae):  # compilation is not training
            jax.block_until_ready(terms)
            clock.resume()
        else:
            clock.count(substeps * level.batch_size)
        due, signum = _due(config, at), stop.asked()
        if not any(due.values()) and not signum:
            continue

        arrived, pending = [(start, parallel.unreplicate(t)) for start, t in pending], []
        refuse_divergence(config, arrived)
        window += [t for _, t in arrived]
        rate = clock.pause()
        if due["log"]:
            row = {"seconds": clock.seconds(), "examples_per_second": rate} | _learning_rate(config, at)
            row |= logs.summarise(window)
            window = []
            if metrics:
                metrics.write(at, row)
                progress.report(at, row, rate and rate / level.batch_size)
        if signum:  # nothing but saving: there may be seconds left
            due = {"draw": False, "evaluate": False, "save": True}
        if due["draw"] or due["evaluate"] or due["save"]:
            host = parallel.unreplicate(devices_state)
            refuse_bad_state(config, host)
            figures, model, asked = _keep(run, host, due, metrics, stop)
            signum = signum or asked
        if signum:  # and not `stop.signum`, which may have come after what was saved
            progress.close()
            raise Interrupted(f"saved step {at} of {last}; run the same command again to go on", signum)
        clock.resume()
    progress.close()
    return host, figures, model


def _keep(run, host, due, metrics, stop):
    """Evaluates, draws and saves what is due. Returns the figures, if evaluated, and the model, if made.

    A signal that comes meanwhile leaves only the saving; then it is the third result, 0 otherwise.
    """
    figures, model, asked = {}, None, 0
    try:
        if metrics and (due["evaluate"] or due["draw"]):  # the main process alone
            with stop.abandoning():
                model = run.model(host)
                if due["evaluate"]:
                    figures = evaluation.figures_of(model, run.source_of(model), run.workdir, run.kept)
                    metrics.scalars(int(host.step), evaluation.numbers(figures))
                if due["draw"]:
                    _draw(run, model, metrics, f"_{model.step:07d}")
    finally:  # a checkpoint carries its figures, for `best`, but must not be lost with them
        if due["evaluate"] or due["draw"]:
            asked = stop.agree()
        if due["evaluate"] or due["save"] or asked:
            if metrics:
                metrics.flush()
            run.checkpoints.save(host, evaluation.numbers(figures))
    return figures, model, asked


def _draw(run, model, metrics, suffix=""):
    """The pictures, to the workdir and to TensorBoard."""
    paths = pictures.write_all(model, run.source_of(model), run.workdir, suffix)
    metrics.pictures(model.step, {path.stem.removesuffix(suffix): path for path in paths})


def _learning_rate(config, at: int) -> dict[str, float]:
    return {"learning_rate": float(schedule.hypers_at(config, np.array(at - 1)).learning_rate)}


def _finish(run, model, figures, metrics, clock):
    """Pictures and results.json, and the evaluation if a run that was killed after its last step still lacks it."""
    figures = figures or evaluation.figures_of(model, run.source_of(model), run.workdir, run.kept)
    _draw(run, model, metrics)
    rate = clock.rate() or metrics.rate()
    final = figures | {"step": model.step, "seconds": clock.seconds(), "examples_per_second": rate}
    results.write(run.workdir, final | evaluation.conditions(model, run.source))
    log.info("done: %s", run.workdir)


def _describe(run, host):
    """The run in a few lines: devices, batch, and a table of parameters."""
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
            f", at {level.size} pixels" if level.size else "",
        )
