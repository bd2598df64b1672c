"""The training loop: restore, step, log, picture, evaluate, save."""

import collections
import contextlib
import functools
import logging
import math
import signal
from pathlib import Path

import jax
import numpy as np

from sintrovae_jax import checkpoint, data, evaluate, inference, logs, parallel, pictures, state, step
from sintrovae_jax import config as configs
from sintrovae_jax.errors import Diverged, Interrupted

log = logging.getLogger(__name__)
_IN_FLIGHT = 2  # dispatches queued on the devices; more would only delay the answer to a signal


class Stop:
    """SIGTERM and SIGINT ask to stop after the dispatch in flight; a second one gets its default effect."""

    def __init__(self):
        self.signum = 0

    @contextlib.contextmanager
    def listening(self):
        # Several processes must stop at one step: there jax's own SIGTERM handler tells all of them (`preempted`).
        signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        before = {s: signal.getsignal(s) for s in signals}

        def handle(signum, _):
            self.signum = signum
            signal.signal(signum, before[signum])
            log.info("%s: stopping after the step under way", signal.Signals(signum).name)

        for s in signals:
            signal.signal(s, handle)
        try:
            yield self
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def asked(self, at: int) -> int:
        """The signal that asks to stop, or 0. With several processes, the same on all of them."""
        if jax.process_count() > 1 and parallel.preempted(at):
            self.signum = signal.SIGTERM
        return self.signum


class Hypers:
    """The hyper-parameters of a dispatch, put on the devices only when they change."""

    def __init__(self, config):
        self._config, self._host, self._devices = config, None, None

    def at(self, start: int):
        host = step.hypers_at(self._config, np.arange(start, start + self._config.train.substeps))
        if self._host is None or any((a != b).any() for a, b in zip(host, self._host, strict=True)):
            self._host, self._devices = host, parallel.replicate(host)
        return self._devices


class Run:
    """What the loop's functions share: the config, the static parts, and where things are written."""

    def __init__(self, config, workdir: Path):
        self.config, self.workdir = config, workdir
        self.networks, self.objective, shape = step.from_config(config)
        self.create = functools.partial(state.create, self.networks, config.seed, shape, config.model.z_dim)
        self.source = data.build(config.data)
        c = config.checkpoint
        self.checkpoints = checkpoint.Checkpoints(workdir, c.keep, c.best, c.best_mode)

    def restore_or_create(self) -> state.TrainState:
        """The newest sound checkpoint, or a fresh state."""
        restored = self.checkpoints.restore(jax.eval_shape(self.create))
        if restored is None:
            return jax.device_get(jax.jit(self.create)())
        log.info("resuming from step %d", restored.step)
        return restored

    def evaluate(self, host: state.TrainState) -> dict[str, float]:
        """The evaluators' figures, on the main process; {} on the others."""
        if not parallel.is_main():
            return {}
        return evaluate.figures_of(inference.from_state(self.config, self.networks, host), self.source, self.workdir)

    def draw(self, host: state.TrainState, suffix: str = "") -> None:
        """The pictures, on the main process."""
        if parallel.is_main():
            model = inference.from_state(self.config, self.networks, host)
            pictures.write_all(model, self.source, self.workdir, suffix)

    def save(self, host: state.TrainState, figures: dict | None = None) -> None:
        """Saves, unless the state holds NaN or infinity. Raises `Diverged` then."""
        for path, leaf in jax.tree_util.tree_flatten_with_path(host)[0]:
            if not np.isfinite(leaf).all():
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise Diverged(f"step {host.step}: {name} is not finite; {_ADVICE['loss']}")
        if int(host.step) not in self.checkpoints.steps():
            self.checkpoints.save(host, figures)


_ADVICE = {
    "loss": "lower optimizer.learning_rate",
    "rec": "lower optimizer.learning_rate or objective.beta_rec",
    "kl": "raise objective.beta_neg (weaker repulsion) or lower optimizer.learning_rate",
    "exp": "raise objective.beta_neg (weaker repulsion) or objective.beta_rec",
}


def refuse_divergence(window: list[tuple[int, dict]]) -> None:
    """Raises `Diverged` if a term of the window [(first step, {term: [sum, count, first bad]})] is not finite."""
    for start, terms in window:
        first = {name: float(term[2]) for name, term in terms.items()}
        name = min(first, key=lambda n: (first[n], n.startswith("loss")))  # a loss only repeats what its terms say
        if math.isfinite(first[name]):
            advice = _ADVICE[name.split("_")[0]]
            raise Diverged(f"step {start + int(first[name])}: {name} became NaN or infinite; {advice}")


def train(config, workdir: Path) -> None:
    """Trains to `config.train.steps`, resuming if the workdir has a checkpoint; ends with an evaluation.

    Raises `UserError`, `Diverged` (the last good checkpoint stays) or `Interrupted` (a checkpoint was saved).
    """
    shard = parallel.shard(config.train.batch_size)
    run = Run(config, workdir)
    try:
        host = run.restore_or_create()
        first, last = int(host.step), config.train.steps
        if parallel.is_main():
            configs.write(config, workdir)
        if first >= last and evaluate.read_results(workdir).get("step") == first:
            log.info("already trained to step %d: see %s", first, workdir / evaluate.FILE)
            return
        metrics = logs.Metrics(workdir, first) if parallel.is_main() else None
        clock = logs.Clock(metrics.seconds() if metrics else 0.0)
        if first == 0 and parallel.is_main():
            _describe(run, host, shard)
        with Stop().listening() as stop:
            host, figures = _loop(run, host, last, shard, metrics, clock, stop)
        _finish(run, host, figures, metrics, clock)
    finally:
        run.checkpoints.close()


def _loop(run, host, last, shard, metrics, clock, stop):
    """Steps until `last`; returns the final host state and its figures. Only log steps and saves wait for the devices."""
    config, substeps = run.config, run.config.train.substeps
    first = int(host.step)
    train_step = parallel.pmap(functools.partial(step.train_step, run.networks, run.objective), in_axes=(0, 0, 0, None))
    key = jax.random.key(config.seed, impl="threefry2x32")
    stream = data.batches(run.source, seed=config.seed, start=first, stop=last, substeps=substeps, shard=shard)
    batches, hypers, progress = parallel.prefetch(stream), Hypers(config), logs.Progress(first, last)
    devices_state, window, in_flight, figures = parallel.replicate(host), [], collections.deque(), {}
    since = first  # where the clock's present stretch began

    for start in range(first, last, substeps):
        devices_state, terms = train_step(devices_state, next(batches), hypers.at(start), key)
        at = start + substeps
        window.append((start, terms))
        in_flight.append(terms)
        if start == first:  # compilation is not training
            jax.block_until_ready(terms)
            clock.resume()
            since = at
        elif len(in_flight) > _IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        progress.advance(substeps)

        stopping = stop.asked(at)
        due = {
            "log": at % config.log.every == 0,
            "draw": config.log.figures_every and at % config.log.figures_every == 0,
            "evaluate": config.eval.every and at % config.eval.every == 0 and at < last,
            "save": at % config.checkpoint.every == 0 or at == last or stopping,
        }
        if not any(due.values()):
            continue

        window = [(s, parallel.unreplicate(t)) for s, t in window]
        refuse_divergence(window)
        rate = clock.pause((at - since) * config.train.batch_size)
        if due["log"]:
            row = {"seconds": clock.seconds(), "examples_per_second": rate}
            row |= {"learning_rate": float(step.hypers_at(config, np.array(at - 1)).learning_rate)}
            row |= logs.summarise([t for _, t in window])
            window = []
            if metrics:
                metrics.write(at, row)
                progress.report(at, row, rate and rate / config.train.batch_size)
        if due["draw"] or due["evaluate"] or due["save"]:
            host, figures = parallel.unreplicate(devices_state), {}
            if (due["evaluate"] or at == last) and not stopping:
                figures = run.evaluate(host)
                if metrics and figures:
                    metrics.scalars(at, figures)
            if due["save"] or due["evaluate"]:
                run.save(host, figures)
            if due["draw"] and not stopping:
                run.draw(host, f"_{at:07d}")
        if stopping and at < last:
            progress.close()
            raise Interrupted(f"saved step {at} of {last}; run the same command again to go on", stopping)
        since = at
        clock.resume()
    progress.close()
    return host, figures


def _finish(run, host, figures, metrics, clock):
    """The final evaluation (if the loop did not end with it), pictures and results.json."""
    if not metrics:
        return
    figures = figures or run.evaluate(host)
    run.draw(host)
    results = figures | {"step": int(host.step), "seconds": clock.seconds(), "examples_per_second": clock.rate()}
    evaluate.write_results(run.workdir, results)
    metrics.close()
    log.info("done: %s", run.workdir)


def _describe(run, host, shard):
    """The run in a few lines: devices, batch, and a table of parameters."""
    from clu import parameter_overview

    for name, network in (("encoder", host.encoder), ("decoder", host.decoder)):
        log.info("%s\n%s", name, parameter_overview.get_parameter_overview(network.params, include_stats=False))
    log.info(
        "%d %s device(s), batch %d (%d a device), %d steps, %d a dispatch",
        jax.device_count(),
        jax.default_backend(),
        shard.batch_size,
        shard.per_device,
        run.config.train.steps,
        run.config.train.substeps,
    )
