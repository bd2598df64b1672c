"""All code that deals with more than one device or more than one process.

A training step is a per-device function that communicates through the named axis `AXIS`; `pmap` wraps it once. Trees
"on the devices" are replicated: every leaf has a leading axis of local devices. Files are written from plain host
copies without that axis (`unreplicate`), so that checkpoints do not depend on the device count.
"""

import collections
import contextlib
import itertools
import os
import signal
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sintrovae_jax import cancellation, progress
from sintrovae_jax.arrays import Array, Tree
from sintrovae_jax.errors import Unavailable, UserError

AXIS = "devices"
T = TypeVar("T")  # a tree that keeps its structure
HEARTBEAT = 60  # seconds; jax's default is 100. Less would end runs that a busy network or host only slows down


def _asked_by_environment() -> bool:
    """Whether a launcher started this process as one of several: Slurm with several tasks, or a TPU pod on GKE.

    On plain TPU VMs only the metadata server knows about the pod, so they need `distributed=on`.
    """
    slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    workers = (os.environ.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    return slurm or any("," in w for w in workers)


def initialize(distributed: str, heartbeat: int = HEARTBEAT, notices: bool = False) -> None:
    """Starts `jax.distributed` if asked to. Must be called before any use of a device.

    distributed: 'off'; 'auto' (when Slurm or a TPU pod's environment says there are several processes); 'on' (always,
    with jax's own detection); or 'HOST:PORT,COUNT,INDEX'. heartbeat: seconds without a sign of life after which a
    process counts as lost, and all others abort. notices: whether SIGTERM notifies `preempted` instead of ending this
    process. Raises `UserError` for any other value, if jax cannot find its peers, and if it does not know the devices
    of JAX_PLATFORMS; `Unavailable` if devices cannot be used.
    """
    if distributed == "off" or (distributed == "auto" and not _asked_by_environment()):
        _find_devices()
        return
    if distributed in ("auto", "on"):
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"distributed={distributed}: {first_line(error)}; give HOST:PORT,COUNT,INDEX") from error
    else:
        jax.distributed.initialize(*_address(distributed), heartbeat_timeout_seconds=heartbeat)
    if not notices:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # jax's own handler only records the signal
    _find_devices()


def _find_devices() -> None:
    """Raises `UserError` if the platform of JAX_PLATFORMS is not installed, and `Unavailable` if it does not start."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        wanted = f"JAX_PLATFORMS={jax.config.values['jax_platforms']}"
        if isinstance(error, AssertionError):  # jax finds no plugin for this platform
            raise UserError(f"{wanted}: jax is installed without support for it") from None
        if "known backends" in str(error):
            raise UserError(f"{wanted}: {first_line(error)}") from None
        raise Unavailable(f"no device: {first_line(error)}") from error


def _address(distributed: str) -> tuple[str, int, int]:
    try:
        address, *numbers = distributed.split(",")
        host, port = address.rsplit(":", 1)
        count, index = map(int, numbers)
        if not (host and 0 < int(port) < 2**16 and 0 <= index < count):
            raise ValueError
    except ValueError:
        raise UserError(
            f"distributed={distributed!r} is none of auto, on, off or HOST:PORT,COUNT,INDEX "
            "(as in 10.0.0.1:1234,4,0 for the first of four processes)"
        ) from None
    return address, count, index


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its repr without a message."""
    return (str(error).splitlines() or [repr(error)])[0]


def is_main() -> bool:
    """Whether this process is the one that writes logs, figures and results."""
    return jax.process_index() == 0


class Shard(NamedTuple):
    """This process's part of the global batch: examples [start, start + devices·per_device)."""

    batch_size: int
    start: int
    devices: int
    per_device: int

    @property
    def stop(self) -> int:
        return self.start + self.devices * self.per_device


def shard(batch_size: int, key: str = "train.batch_size") -> Shard:
    """Splits a global batch over all devices. Raises `UserError`, naming the config's key, if it does not divide."""
    if batch_size % jax.device_count():
        raise UserError(f"{key}: {batch_size} does not divide by the {jax.device_count()} devices of this run")
    per_device = batch_size // jax.device_count()
    devices = jax.local_device_count()
    return Shard(batch_size, jax.process_index() * devices * per_device, devices, per_device)


class Mapped(Protocol):
    """A function over devices, compiled when it is called."""

    def __call__(self, *arguments: Tree) -> Tree: ...

    def lower(self, *arguments: Tree) -> jax.stages.Lowered: ...


class _CompiledOnce:
    """A mapped function, compiled by `compiled` for the shapes of its first call."""

    def __init__(self, mapped: Mapped):
        self._program: jax.stages.Compiled | None = None
        self.lower = mapped.lower

    def __call__(self, *arguments: Tree) -> Tree:
        if self._program is None:
            self._program = compiled(self.lower(*arguments))
        return self._program(*arguments)


def pmap(step: Callable[..., Tree], in_axes: Any, devices: Sequence[jax.Device] | None = None) -> Mapped:
    """Maps a per-device step over all devices, or over the given ones. Its first argument, the state, is donated.

    With a single process on CPUs, it is compiled by `compiled`, once, for the shapes of its first call.
    """
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=in_axes, devices=devices, donate_argnums=(0,))
    if devices is not None or jax.default_backend() != "cpu" or jax.process_count() > 1:
        return mapped
    return _CompiledOnce(mapped)


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a lowered step. On CPUs it selects Eigen's convolutions, which use all cores.

    The default in jaxlib 0.10.2, XLA's YNN library, uses a single core. Other versions may not know the option.
    """
    if jax.default_backend() == "cpu":
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return lowered.compile({"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"})
    return lowered.compile()


def pmean(tree: T) -> T:
    """The mean over devices, inside a step."""
    return lax.pmean(tree, AXIS)


def example_keys(key: jax.Array, step: Array, index: jax.Array) -> jax.Array:
    """One key per example, from (seed, step, index in the global batch) only. index: [B]. Returns keys [B].

    So the noise does not depend on how the batch is split over devices and processes.
    """
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(step_key, i))(index)


def _local(*axes: str) -> NamedSharding:
    return NamedSharding(Mesh(jax.local_devices(), (AXIS,)), PartitionSpec(*axes))


def replicate(tree: T) -> T:
    """Copies a host tree to every local device.

    The axis must have the name of the step's axis. Otherwise the first dispatch's state has another sharding than the
    second's, and the step compiles twice.
    """
    return split(jax.tree.map(lambda x: np.stack([x] * jax.local_device_count()), tree))


def split(tree: T) -> T:
    """Distributes a host tree, whose leaves have a leading axis of local devices, over these devices."""
    return jax.device_put(tree, _local(AXIS))


def on_local_devices(tree: T) -> T:
    """Copies a tree to every local device, for jitted functions that use it together with chunks of `in_chunks`."""
    return jax.device_put(tree, _local())


def chunk(size: int) -> int:
    """The size of the chunks of `in_chunks`: `size`, rounded up to a multiple of the local devices."""
    devices = jax.local_device_count()
    return -(-size // devices) * devices


def in_chunks(function: Callable[..., Tree], size: int, *inputs: Tree) -> Tree:
    """function(*inputs) for inputs [N, ...] of any N, computed in chunks of about `size` over all local devices.

    function: jitted; row i of its outputs depends only on row i of its inputs. An input may be None. Compiles once for
    all N above `size`. Returns the outputs, [N, ...] each.
    """
    n, size = next(len(x) for x in inputs if x is not None), chunk(size)

    def part(rows):
        cancellation.check()
        if any(isinstance(x, jax.core.Tracer) for x in rows):
            return function(*rows)
        split_up = next(len(x) for x in rows if x is not None) % jax.local_device_count() == 0
        return function(*jax.device_put(rows, _local(AXIS) if split_up else _local()))

    if n <= size:
        return part(inputs)
    # The last chunk is padded with the first rows, so that it does not compile again.
    places = [np.arange(start, start + size) % n for start in range(0, n, size)]
    parts = []
    for indices in progress.counted(places, "examples", n, size):
        parts.append(part([None if x is None else x[indices] for x in inputs]))
        if len(parts) > 1 and not isinstance(jax.tree.leaves(parts[-2])[0], jax.core.Tracer):
            jax.block_until_ready(parts[-2])  # at most one queued chunk: queued work cannot be cancelled
    return jax.tree.map(lambda *chunks: jnp.concatenate(chunks)[:n], *parts)


def unreplicate(tree: T) -> T:
    """The first local device's copy of a replicated tree, as numpy arrays that own their memory.

    `x[0]` of such an array may communicate; reading its first shard does not. The copy matters on the CPU backend,
    because numpy would otherwise share a buffer that is donated to the next step.
    """
    shards = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
    return jax.tree.map(lambda x: np.array(x[0]), jax.device_get(shards))


def prefetch(batches: Iterator[T], size: int = 2) -> Iterator[T]:
    """Keeps the batches of `size` dispatches on the devices, ahead of the step. Leaves: [local devices, ...]."""
    queue = collections.deque(map(split, itertools.islice(batches, size)))
    while queue:
        yield queue.popleft()
        queue.extend(map(split, itertools.islice(batches, 1)))


def agree(value: bool) -> bool:
    """Whether `value` is True on every process. All processes must call it."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(value)).all())


def from_main(*values: float) -> tuple[float, ...]:
    """Broadcasts numbers from the main process. All processes must call it, and wait for each other.

    Integers (32 bits) stay exact, other numbers are rounded to float32.
    """
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    sent = tuple(np.asarray(v, np.int32 if isinstance(v, int) else np.float32) for v in values)
    return tuple(v.item() for v in multihost_utils.broadcast_one_to_all(sent))


def refuse_different(what: str, value: object) -> None:
    """Raises `RuntimeError` on all processes unless all have the same value, compared by repr. All must call it."""
    number = zlib.crc32(repr(value).encode("utf-8", "surrogateescape")) >> 1  # fits an int32
    if not agree(from_main(number)[0] == number):
        raise RuntimeError(f"{what} differ between the processes; here: {str(value)[:500]}")


def preempted(poll: int) -> bool:
    """For several processes: whether one of them was told to stop. The answer to a poll is the same on all processes.

    poll: 1, 2, 3, … After a notice jax picks the number after the highest one that any process has polled, and returns
    True only for that number. So every process must poll every number, and the numbers must count polls, not training
    steps: a resumed run does not begin at step 1.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(poll)
