"""Times a recipe's compiled training step on synthetic data that stays on the devices. Does not import TensorFlow.

    python -m sintrovae_jax.tools.bench --config configs/rings.py [--config.key=value ...] [--dispatches N]
    python -m sintrovae_jax.tools.bench --data --config configs/cifar10.py ...

Prints one JSON line. The timed step is the adversarial one (or the VAE's, for objective.name=vae), whatever num_vae is.
With --data, times only the input pipeline instead, from files to host arrays that are ready for the devices.
"""

import json
import logging
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import (
    cli,
    dispatch,
    extras,
    logs,
    parallel,
    recipe_files,
    reconstruction,
    schedule,
    seeds,
    train_state,
)
from sintrovae_jax import config as configs
from sintrovae_jax.arrays import Tree
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError
from sintrovae_jax.tools import costs, explain
from sintrovae_jax.train_state import Networks

log = logging.getLogger(__name__)


def synthetic(config: ConfigDict, shard: parallel.Shard) -> dict[str, np.ndarray]:
    """Batches of noise, like those of `pipeline.batches`: host arrays [local devices, substeps, batch, *shape]."""
    lead = (shard.devices, config.train.substeps, shard.per_device)
    kind = examples.of(config.data)
    x = np.random.default_rng(config.seed).random((*lead, *kind.shape), np.float32)
    if kind.dtype == np.uint8:
        x = (256 * x).astype(np.uint8)
    index = np.arange(shard.start, shard.stop, dtype=np.int32).reshape(shard.devices, 1, shard.per_device)
    batch = {"x": x, "index": np.broadcast_to(index, lead).copy()}
    return batch | ({"labels": batch["index"] % config.model.classes} if config.model.classes else {})


class Step(NamedTuple):
    """A recipe's step before it is compiled, and its arguments: state, batches, hypers, key and weights."""

    function: parallel.Mapped
    lowered: jax.stages.Lowered
    arguments: tuple[Tree, ...]


def prepare(config: ConfigDict, alter: Callable[[Networks], Networks] = lambda networks: networks) -> Step:
    """Creates state and batches and lowers the step. alter: the recipe's networks -> the networks to use."""
    shard = parallel.shard(config.train.batch_size)
    networks, static, create = dispatch.from_config(config)
    on_devices = parallel.replicate(train_state.initial(create))
    batches = parallel.split(synthetic(config, shard))
    hypers = parallel.replicate(schedule.hypers_at(config, np.arange(config.train.substeps)))
    weights = parallel.replicate(reconstruction.weights(config.objective))
    arguments = (on_devices, batches, hypers, seeds.key(config.seed), weights)
    step = dispatch.on_devices(alter(networks), static)
    return Step(step, step.lower(*arguments), arguments)


def times(
    compiled: jax.stages.Compiled, arguments: tuple[Tree, ...], samples: int, each: int = 1, limit: float = math.inf
) -> list[float]:
    """The seconds per sample of `each` dispatches without waiting in between. The first sample warms up and is dropped.

    limit: seconds after which no further sample is started; at least one is returned.
    """
    on_devices, *rest = arguments
    seconds, started = list[float](), time.perf_counter()
    while len(seconds) < 2 or (len(seconds) <= samples and time.perf_counter() - started < limit):
        began = time.perf_counter()
        for _ in range(each):
            on_devices, terms = compiled(on_devices, *rest)
        jax.block_until_ready((on_devices, terms))
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def measure(config: ConfigDict, dispatches: int) -> dict[str, Any]:
    """Compiles and times the step. Returns the values of the JSON line; None if the backend has no value."""
    log.info("compiling the step")
    prepared = prepare(config)
    began = time.perf_counter()
    compiled = parallel.compiled(prepared.lowered)
    compile_seconds = time.perf_counter() - began
    known = cost(compiled, prepared.function, prepared.arguments)
    log.info("timing %d dispatches of %d steps", dispatches, config.train.substeps)
    steps_per_second = config.train.substeps / statistics.median(times(compiled, prepared.arguments, dispatches))
    return {
        "steps_per_second": steps_per_second,
        "examples_per_second": steps_per_second * config.train.batch_size,
        "compile_seconds": compile_seconds,
        **known,
        **memory(compiled),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "batch_size": config.train.batch_size,
        "substeps": config.train.substeps,
        "dtype": config.train.dtype,
    }


def measure_data(config: ConfigDict, dispatches: int) -> dict[str, Any]:
    """Times the input pipeline of this process. The first fifth of the dispatches warms it up and is not counted."""
    from sintrovae_jax.data import pipeline, readers  # TensorFlow, which timing the step does not need
    from sintrovae_jax.data.source import check_labels

    shard, substeps = parallel.shard(config.train.batch_size), config.train.substeps
    log.info("timing %d dispatches of %d steps", dispatches, substeps)
    began = time.perf_counter()
    source = pipeline.build(config.data)
    check_labels(config, source)
    build_seconds = time.perf_counter() - began
    warm = max(1, dispatches // 5)
    steps = {"start": 0, "stop": (warm + dispatches) * substeps, "substeps": substeps}
    labels = config.model.classes > 0
    stream = pipeline.batches(source, config.data, seed=config.seed, shard=shard, labels=labels, **steps)
    for _ in range(warm):
        next(stream)
    began = time.perf_counter()
    count = sum(batch["index"].size for batch in stream)
    return {
        "examples_per_second": count / (time.perf_counter() - began),
        "examples": count,
        "build_seconds": build_seconds,
        "cores": readers.cores(),
        "batch_size": config.train.batch_size,
        "substeps": substeps,
    }


def cost(
    compiled: jax.stages.Compiled, step: Callable[..., Tree], arguments: tuple[Tree, ...]
) -> dict[str, float | None]:
    """FLOPs and bytes of one step on one device, as the compiler counts them (it counts the scan's body once).

    On GPUs this package counts them, because the compiler does not count calls of cuDNN and cuBLAS.
    """
    if jax.default_backend() == "gpu":
        moved = explain.total(explain.moved(compiled.as_text() or "")).anywhere
        return {"flops_per_step": costs.flops(costs.jaxpr_of(step, *arguments)), "bytes_per_step": moved}
    analysis = compiled.cost_analysis() or {}
    return {"flops_per_step": analysis.get("flops"), "bytes_per_step": analysis.get("bytes accessed")}


def memory(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Peak bytes on the first device: as planned by the compiler, and as measured by the backend."""
    stats = jax.local_devices()[0].memory_stats() or {}
    analysis = compiled.memory_analysis()
    planned = analysis and analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    return {"peak_bytes_planned": planned, "peak_bytes_seen": stats.get("peak_bytes_in_use")}


def main(argv: list[str]) -> None:
    """The command line. Raises `UserError`."""
    usage = "--config RECIPE [--config.KEY=VALUE ...] [--dispatches N] [--data]"
    about = "Times a recipe's training step on synthetic data, or its input."
    parser = cli.Parser("tools.bench", usage, about, recipe=True)
    parser.add_argument(
        "--dispatches",
        metavar="N",
        type=int,
        default=10,
        help="number of timed dispatches, whose median is reported (default: 10)",
    )
    parser.add_argument("--data", action="store_true", help="time the input pipeline instead of the step")
    arguments, overrides = cli.split(argv[1:])
    args = parser.parse(arguments)
    if args.dispatches < 1:
        raise UserError(f"--dispatches={args.dispatches} must be at least 1")
    config = cli.read_config(args.config, overrides)
    configs.validate(config)
    if args.data:
        extras.need_train()
    parallel.initialize(config.distributed)
    if jax.process_count() > 1:
        raise UserError("bench times the step of one process: run it on one, with distributed=off")
    logs.setup(main=True)
    measured = (measure_data if args.data else measure)(config, args.dispatches)
    if parallel.is_main():
        print(json.dumps({"config": str(recipe_files.find(args.config))} | measured))


if __name__ == "__main__":
    cli.start(main)
