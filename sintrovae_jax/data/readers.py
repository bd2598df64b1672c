"""Processes that read pictures in parallel: threads would block each other at the GIL.

Every picture is decoded in such a process. A file that crashes a decoder, or makes it compute endlessly or allocate too
much memory, costs only a process, not the run. The processes import only `images`, and end with the `Readers` or the
parent process. Requests are sent through a socket (`multiprocessing.connection`), pixels are returned in shared memory.
Pillow settings of the parent (such as `ImageFile.LOAD_TRUNCATED_IMAGES`) do not apply to them.
"""

import contextlib
import logging
import math
import mmap
import os
import queue
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from sintrovae_jax.data import images
from sintrovae_jax.data.images import Format

_DIED = (EOFError, OSError)  # raised by a connection whose other end is gone, perhaps in the middle of a message
_TRIES = 3
_MOST = 32  # enough to read pictures of 256 × 256 faster than any step needs them
_SHARED_BYTES, _AT_ONCE = 2**22, 256  # the most bytes of pixels, and pictures, that a process returns at once
# Limits for decoding a picture. The worst case is three copies of RGBA, when it is laid on the background.
_BYTES_A_PIXEL, _BYTES = 24, 2**29
_PIXELS_A_SECOND, _SECONDS = 10**6, 60  # processor time


class Readers:
    """`count` processes, each started when it is first needed; by default one for each core, but at most `_MOST`."""

    def __init__(self, form: Format, count: int = 0) -> None:
        self._form, self.count = form, count or min(cores(), _MOST)
        self._at_once = max(1, min(_AT_ONCE, _SHARED_BYTES // int(np.prod(form.shape))))
        self._idle: queue.LifoQueue[_Reader | None] = queue.LifoQueue()
        self._pool = ThreadPoolExecutor(self.count)
        for _ in range(self.count):
            self._idle.put(None)  # a process that is not started yet

    def read(self, items: Sequence[str | bytes], x: np.ndarray | None) -> dict[int, str]:
        """Reads pictures, by their paths or from their bytes, into x, uint8 [N, size, size, channels].

        x None: only checks whether they begin like pictures. Returns {index: error} for pictures that cannot be read,
        including any that crash a process. May be called from several threads at once.
        """
        parts = [slice(first, None, self.count) for first in range(min(self.count, len(items)))]
        pixels = [None if x is None else x[part] for part in parts]
        results = self._pool.map(self._part, [items[part] for part in parts], pixels)
        pairs = zip(parts, results, strict=True)
        return {part.start + i * part.step: why for part, wrong in pairs for i, why in wrong.items()}

    def _part(self, items: Sequence[str | bytes], x: np.ndarray | None) -> dict[int, str]:
        """The same, with one process."""
        reader, wrong = self._idle.get(), dict[int, str]()
        try:
            for first in range(0, len(items), self._at_once):
                chunk = slice(first, first + self._at_once)
                reader = reader or _Reader(self._form, self._at_once)
                try:
                    errors = reader.read(items[chunk], None if x is None else x[chunk])
                except _DIED:  # killed, or crashed by a picture: find out which one
                    reader, errors = self._one_by_one(items[chunk], None if x is None else x[chunk])
                wrong |= {first + i: why for i, why in errors.items()}
            return wrong
        finally:
            self._idle.put(reader)

    def _one_by_one(
        self, items: Sequence[str | bytes], x: np.ndarray | None
    ) -> tuple["_Reader | None", dict[int, str]]:
        """Reads the pictures one at a time. Returns the remaining process (or None), and {index: error}."""
        reader, wrong = None, {}
        for i in range(len(items)):
            for _ in range(_TRIES):
                reader = reader or _Reader(self._form, self._at_once)
                try:
                    errors = reader.read(items[i : i + 1], None if x is None else x[i : i + 1])
                    break
                except _DIED:
                    status, reader = reader.status(), None
                    errors = {0: f"the process that read it ended with {status}"}
                    if status == -signal.SIGXCPU:
                        errors = {0: "decoding it does not end"}
                        break
            if errors:
                wrong[i] = errors[0]
        return reader, wrong


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Reader:
    """The parent's handle of a process. Raises `RuntimeError` if the process cannot start."""

    def __init__(self, form: Format, at_once: int):
        for _ in range(_TRIES):
            status = self._begin(form, (at_once, *form.shape))
            if status is None:
                weakref.finalize(self, _stop, self._connection, self._process).atexit = False
                return
            if status >= 0:  # it was not killed, so another would end the same way
                break
        raise RuntimeError(f"a process to read pictures ended at once with {status}")

    def _begin(self, form: Format, shape: tuple[int, ...]) -> int | None:
        """Starts the process. Returns its exit status if it has ended already."""
        self._connection, theirs = Pipe()
        with theirs, _memory(int(np.prod(shape))) as memory:
            self._pixels = _mapped(memory.fileno(), shape)
            self._process = _start(theirs.fileno(), memory.fileno())
        try:
            self._connection.send((form, shape))
            self._connection.recv()  # it is ready
        except _DIED:
            return self.status()
        return None

    def read(self, items: Sequence[str | bytes], x: np.ndarray | None) -> dict[int, str]:
        self._connection.send((items, x is not None))
        wrong = self._connection.recv()
        if x is not None:
            x[:] = self._pixels[: len(x)]
        return wrong

    def status(self) -> int:
        """Waits for the process to end. Returns its exit status."""
        return self._process.wait()


def _start(*handles: int) -> subprocess.Popen[bytes]:
    root = Path(images.__file__).resolve().parents[2]
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), *sys.path])),
        "OPENBLAS_NUM_THREADS": "1",  # numpy would start one per core
    }
    # A scheduler may signal every process of a job, and Ctrl-C every process of a session. The parent may need the new
    # process until its own end, so neither signal may reach that process, not even before it runs Python.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "sintrovae_jax.data.readers", *map(str, handles)],
            env=os.environ | environment,
            pass_fds=handles,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(connection: Connection, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    process.kill()
    process.wait()


def _memory(size: int) -> IO[bytes]:
    """An unnamed file of this many bytes, which processes can map."""
    on_linux = hasattr(os, "memfd_create")
    file = os.fdopen(os.memfd_create("pixels"), "r+b") if on_linux else tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file


def _mapped(handle: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(handle, int(np.prod(shape))), np.uint8).reshape(shape)


def serve(connection: Connection, memory: int) -> None:
    """Serves requests for pictures until the connection closes."""
    form, shape = connection.recv()
    pixels = _mapped(memory, shape)
    Image.MAX_IMAGE_PIXELS = None  # `Format.max_pixels` is the limit
    warnings.simplefilter("ignore")  # warnings do not name the file
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(form)
    connection.send(None)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain there about damaged files without naming them
    while True:
        wrong: dict[int, str] = {}
        items, whole = connection.recv()
        for i, item in enumerate(items):
            _limit_time(form)
            try:
                encoded = item if isinstance(item, bytes) else _contents(item)
                if whole:
                    pixels[i] = images.decode(encoded, form)
                else:
                    images.check(encoded, form)
            except MemoryError:
                wrong[i] = "the file is too large"
            except (ValueError, OSError) as error:
                wrong[i] = " ".join(str(error).split())
        connection.send(wrong)


def _contents(path: str) -> bytes:
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe could block forever
        raise ValueError("not a file")
    return Path(path).read_bytes()


def _limit_memory(form: Format) -> None:
    """Makes allocations fail that exceed the needs of a picture of `form.max_pixels`."""
    if sys.platform != "linux":  # other systems ignore the limit, or count shared memory too
        return
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # data
    _lower(resource.RLIMIT_DATA, pages * resource.getpagesize() + _BYTES + _BYTES_A_PIXEL * form.max_pixels)


def _limit_time(form: Format) -> None:
    """Ends this process if the next picture takes much longer than a picture of `form.max_pixels`."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime + _SECONDS + form.max_pixels / _PIXELS_A_SECOND
    _lower(resource.RLIMIT_CPU, math.ceil(seconds))


def _lower(limit: int, value: int) -> None:
    """Sets a soft limit, but not above the hard one."""
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    with contextlib.suppress(*_DIED):
        serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
