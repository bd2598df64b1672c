"""Estimates the memory and time that a recipe needs on given chips, without using them.

    python -m sintrovae_jax.main --config configs/cifar10.py --mode plan --topology v5e:2x4

For a TPU slice the recipe's own step is compiled by the TPU compiler, which needs no TPU (extra `tpu`). For GPUs it is
compiled for the local GPU, or else for the CPU, as an estimate. Nothing is run; the inputs are only shapes.

The time is the roofline's: no step is faster than its FLOPs at the chip's peak, or than its bytes at the bandwidth of
the chip's memory. A real step takes longer, and also waits for its collectives.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import dispatch, parallel, reconstruction, schedule, seeds
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError
from sintrovae_jax.tools import bench, explain, hlo, text

log = logging.getLogger(__name__)
_GB, _GIB = 1e9, 2**30


class Chip(NamedTuple):
    """A chip's peak in FLOP/s (bfloat16, dense), the bytes of its memory, and that memory's bytes/s."""

    flops: float
    memory: float
    bandwidth: float
    gpu: bool = False


# TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, November 2026. GPUs: NVIDIA's data sheets, SXM, no sparsity.
CHIPS = {
    "v4": Chip(275e12, 32 * _GIB, 1200 * _GB),
    "v5e": Chip(197e12, 16 * _GB, 819 * _GB),
    "v5p": Chip(459e12, 95 * _GB, 2765 * _GB),
    "v6e": Chip(918e12, 32 * _GB, 1638 * _GB),
    "a100": Chip(312e12, 80 * _GB, 2039 * _GB, gpu=True),
    "h100": Chip(989e12, 80 * _GB, 3350 * _GB, gpu=True),
    "h200": Chip(989e12, 141 * _GB, 4800 * _GB, gpu=True),
}
# The two cores of a v4 are one device, as on a real slice; for the other chips this is the default.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The needs of one step of one level. Bytes and FLOPs are per chip and step; times in seconds."""

    topology: str
    chips: int
    level: int | None
    batch_size: int
    dtype: str
    arguments: int | None  # bytes that persist: the state and the batches of a dispatch
    temporaries: int | None
    memory: float  # bytes that a chip has
    fits: bool
    why: str  # the reason if it does not fit
    flops: float | None
    bytes: float | None
    seconds: float | None  # the roofline's
    bound: str  # 'compute' or 'memory'
    asked: int | None  # collectives before compilation, which merges some
    collectives: dict[str, tuple[int, int]]  # {kind: (number, bytes)} after compilation, {} on one chip
    steps: int  # of the recipe, at this level
    estimate: bool  # compiled for another device than the chip
    explanation: str = ""  # the instructions that move the bytes, if requested

    @property
    def examples_per_second(self) -> float | None:
        return self.seconds and self.batch_size / self.seconds

    @property
    def hours(self) -> float | None:
        """The time of all steps at this level, at the roofline."""
        return self.seconds and self.steps * self.seconds / 3600


def plan(config: ConfigDict, topology: str, level: int | None = None, explained: bool = False) -> list[Plan]:
    """Plans every level of a recipe, or one; networks that do not grow have one.

    topology: a TPU slice, 'v5e:4x8', or a number of GPUs, 'h100:8'. explained: also report the memory traffic. Raises
    `UserError` for a topology that does not exist, a level that the recipe does not have, a batch that does not divide,
    or without the TPU's compiler.
    """
    chip, count, devices = _devices(topology)
    levels = schedule.levels(config)
    if level is not None:
        numbers = [each.number for each in levels]
        if level not in numbers:
            raise UserError(f"--level {level}: this recipe has {'no levels' if numbers == [None] else numbers}")
        levels = [levels[numbers.index(level)]]
    key = "growth.batch_sizes" if config.growth.batch_sizes else "train.batch_size"
    for each in levels:
        if each.batch_size % count:
            raise UserError(f"{key}: {each.batch_size} does not divide by the {count} chips of {topology}")
    return [_level_plan(config, each, topology, chip, count, devices, explained) for each in levels]


def _devices(topology: str) -> tuple[Chip, int, Sequence[jax.Device] | None]:
    """The chip, the number of chips, and the devices to compile for; None: a local device."""
    name, _, layout = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", layout):
        given = f", not {topology!r}" if topology else ""
        raise UserError(f"--mode plan needs --topology, as v5e:4x8 or h100:8, of {', '.join(CHIPS)}{given}")
    chip = CHIPS[name]
    if chip.gpu:
        return chip, int(np.prod([int(n) for n in layout.split("x")])), None
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this may not be a TPU VM
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is used, so another process may use it
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(topology, "tpu", **_OPTIONS.get(name, {})).devices
    except Exception as error:  # whatever jax and libtpu raise
        reason = parallel.first_line(error)
        if "INVALID_ARGUMENT" in reason:
            raise UserError(f"--topology {topology} does not exist: {reason}") from None
        raise UserError(f"planning for TPUs needs their compiler: install the extra `tpu` ({reason})") from None
    return chip, len(devices), devices


def _level_plan(
    config: ConfigDict,
    level: schedule.Level,
    topology: str,
    chip: Chip,
    count: int,
    devices: Sequence[jax.Device] | None,
    explained: bool,
) -> Plan:
    networks, static, create = dispatch.from_config(config)
    static = dataclasses.replace(static, level=level.number)
    per_device = level.batch_size // count
    step, arguments = _step(config, networks, static, create, level, count if devices else 1, per_device, devices)
    lowered = step.lower(*arguments)
    estimate = not devices and not (chip.gpu and jax.default_backend() == "gpu")
    known: dict[str, Any] = {
        "topology": topology,
        "chips": count,
        "level": level.number,
        "batch_size": level.batch_size,
        "dtype": config.train.dtype,
        "memory": chip.memory,
        "steps": level.stop - level.start,
        "estimate": estimate,
    }
    log.info("compiling the step%s for %s", f", level {level.number}" if level.number is not None else "", topology)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        nothing: dict[str, Any] = dict.fromkeys(("arguments", "temporaries", "flops", "bytes", "seconds", "asked"))
        return Plan(**known, **nothing, fits=False, why=_shortage(error), bound="", collectives={})
    requested = len(re.findall(r"stablehlo\.(?:all_reduce|all_gather|reduce_scatter)", lowered.as_text()))
    metrics = _metrics(compiled, chip, bench.cost(compiled, step, arguments))
    explanation = explain.report(compiled.as_text() or "", metrics["bytes"]) if explained else ""
    return Plan(**known, **metrics, asked=requested, explanation=explanation)


def _step(config, networks, static, create, level, devices_count, per_device, devices):
    """The step for these devices, and its arguments as shapes."""
    substeps = config.train.substeps

    def on_each(tree):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((devices_count, *leaf.shape), leaf.dtype), tree)

    kind = examples.of(config.data)
    shape = (level.size, level.size, kind.shape[-1]) if level.size else kind.shape
    batch = {
        "x": jax.ShapeDtypeStruct((substeps, per_device, *shape), kind.dtype),
        "index": jax.ShapeDtypeStruct((substeps, per_device), jnp.int32),
    }
    batch |= {"labels": batch["index"]} if config.model.classes else {}
    hypers = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, schedule.hypers_at(config, np.arange(substeps))))
    weights = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, reconstruction.weights(config.objective)))
    step = dispatch.on_devices(networks, static, devices)
    key = jax.eval_shape(lambda: seeds.key(config.seed))
    return step, (on_each(jax.eval_shape(create)), on_each(batch), on_each(hypers), key, on_each(weights))


def _metrics(compiled: jax.stages.Compiled, chip: Chip, cost: dict[str, Any]) -> dict[str, Any]:
    analysis, program = compiled.memory_analysis(), compiled.as_text()
    assert analysis is not None and program is not None  # all supported backends have them
    arguments, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    kept = arguments + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    flops, moved = cost["flops_per_step"], cost["bytes_per_step"]
    compute, memory = flops / chip.flops, moved / chip.bandwidth
    fits = kept + temporaries <= chip.memory
    return {
        "arguments": kept,
        "temporaries": temporaries,
        "fits": fits,
        "why": "" if fits else f"{(kept + temporaries) / _GB:.1f} GB of {chip.memory / _GB:.1f} GB",
        "flops": flops,
        "bytes": moved,
        "seconds": max(compute, memory),
        "bound": "compute" if compute >= memory else "memory",
        "collectives": collectives(program),
    }


def _shortage(error: Exception) -> str:
    """The compiler's message for a program that does not fit in the chip's memory."""
    found = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
    return f"{found[1]}B of {found[2]}B" if found else parallel.first_line(error)


_INSTRUCTION = re.compile(r"= (\(.*?\)|\S+) (" + "|".join(COLLECTIVES) + r")(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """{kind: (count, bytes that are reduced or moved)} of the collectives in an optimised program's text."""
    out: dict[str, tuple[int, int]] = {}
    for line in program.splitlines():
        if found := _INSTRUCTION.search(line):
            arrays = _ARRAY.findall(found[1])
            if "-start(" in line and len(arrays) > 1 and found[2] != "all-reduce":
                arrays = arrays[len(arrays) // 2 :]  # the inputs are listed first
            size = sum(
                hlo.BYTES.get(kind, 1) * int(np.prod([int(n) for n in dims.split(",") if n])) for kind, dims in arrays
            )
            number, total = out.get(found[2], (0, 0))
            out[found[2]] = number + 1, total + size
    return out


_COLUMNS = ("level", "batch", "type", "GB kept", "GB temp", "fits", "TFLOP", "GB moved", "ms", "bound", "all-reduces")


def table(plans: list[Plan]) -> str:
    """The plans as aligned text, with examples per second and the hours for all steps."""
    rows = [[*_COLUMNS, "examples/s", "hours"]]
    for p in plans:
        count = sum(number for number, _ in p.collectives.values())
        megabytes = sum(size for _, size in p.collectives.values()) / 1e6
        rows.append(
            [
                "-" if p.level is None else f"{p.level}",
                f"{p.batch_size}",
                p.dtype,
                *(_shown(value, _GB, ".2f") for value in (p.arguments, p.temporaries)),
                "yes" if p.fits else f"no: {p.why}",
                *(_shown(value, unit, ".3g") for value, unit in ((p.flops, 1e12), (p.bytes, _GB), (p.seconds, 1e-3))),
                p.bound or "-",
                f"{p.asked} -> {count} ({megabytes:.3g} MB)",
                *(_shown(value, 1, ".4g") for value in (p.examples_per_second, p.hours)),
            ]
        )
    return text.aligned(rows)


def _shown(value: float | None, unit: float, form: str) -> str:
    return "-" if value is None else format(value / unit, form)


def report(plans: list[Plan]) -> str:
    """The table, with explanations."""
    first = plans[0]
    lines = [f"{first.topology}, {first.chips} chips; memory, FLOPs and bytes are one chip's", table(plans)]
    if first.estimate:
        lines.append("an estimate: compiled for this machine's CPU, with one chip's share of the batch")
    hours = [p.hours for p in plans if p.hours is not None]
    if len(plans) > 1 and len(hours) == len(plans):
        lines.append(f"all levels: {sum(hours):.3g} hours at the roofline")
    for p in plans:
        if p.explanation:
            lines += ["", "" if p.level is None else f"level {p.level}", p.explanation]
    return "\n".join(lines)
