"""Processes that read pictures in parallel: threads would wait for each other at the GIL.

They import only `images`, and end with the `Readers` or the parent process. Requests are sent through a socket
(`multiprocessing.connection`), pixels are returned in shared memory. Settings of Pillow in the parent (such as
`ImageFile.LOAD_TRUNCATED_IMAGES`) do not apply to them.
"""

import contextlib
import mmap
import os
import queue
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO

import numpy as np

from sintrovae_jax.data import images
from sintrovae_jax.data.images import Format

_DIED = (EOFError, OSError)  # of a connection whose other end is gone, perhaps in the middle of a message
_TRIES = 3
_MOST = 32  # enough to read pictures of 256 × 256 faster than any step needs them
_SHARED_BYTES = 2**22  # of the pixels that a process returns at once


class Readers:
    """`count` processes, each started when it is first needed; by default one for each core, but at most `_MOST`."""

    def __init__(self, form: Format, count: int = 0):
        self._form, self.count = form, count or min(cores(), _MOST)
        self._at_once = max(1, _SHARED_BYTES // int(np.prod(form.shape)))
        self._idle: queue.LifoQueue[_Reader | None] = queue.LifoQueue()
        self._pool = ThreadPoolExecutor(self.count)
        for _ in range(self.count):
            self._idle.put(None)  # a process that is not started yet

    def read(self, items: Sequence[str | bytes], x: np.ndarray) -> dict[int, str]:
        """Reads pictures, by their paths or from their bytes, into x, uint8 [N, size, size, channels].

        Returns {index: error} for those that cannot be read, including any that crash a process. May be called from
        several threads at once.
        """
        parts = [slice(first, None, self.count) for first in range(min(self.count, len(items)))]
        results = self._pool.map(self._part, [items[part] for part in parts], [x[part] for part in parts])
        pairs = zip(parts, results, strict=True)
        return {part.start + i * part.step: why for part, wrong in pairs for i, why in wrong.items()}

    def _part(self, items: Sequence[str | bytes], x: np.ndarray) -> dict[int, str]:
        """The same, by one process."""
        reader, wrong = self._idle.get(), dict[int, str]()
        try:
            for first in range(0, len(items), self._at_once):
                chunk = slice(first, first + self._at_once)
                reader = reader or _Reader(self._form, self._at_once)
                try:
                    errors = reader.read(items[chunk], x[chunk])
                except _DIED:  # killed from outside, or crashed by a picture: then find out which
                    reader, errors = self._one_by_one(items[chunk], x[chunk])
                wrong |= {first + i: why for i, why in errors.items()}
            return wrong
        finally:
            self._idle.put(reader)

    def _one_by_one(self, items: Sequence[str | bytes], x: np.ndarray) -> tuple["_Reader | None", dict[int, str]]:
        """Reads the pictures one at a time. Returns the remaining process (or None), and {index: error}."""
        reader, wrong = None, {}
        for i in range(len(items)):
            for _ in range(_TRIES):
                reader = reader or _Reader(self._form, self._at_once)
                try:
                    errors = reader.read(items[i : i + 1], x[i : i + 1])
                    break
                except _DIED:
                    errors, reader = {0: f"the process that read it ended with {reader.status()}"}, None
            if errors:
                wrong[i] = errors[0]
        return reader, wrong


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Reader:
    """A process, as seen from its parent. Raises `RuntimeError` if it cannot start."""

    def __init__(self, form: Format, at_once: int):
        for _ in range(_TRIES):
            status = self._begin(form, (at_once, *form.shape))
            if status is None:
                weakref.finalize(self, _stop, self._connection, self._process).atexit = False
                return
            if status >= 0:  # it was not killed: another would end the same way
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

    def read(self, items: Sequence[str | bytes], x: np.ndarray) -> dict[int, str]:
        self._connection.send(items)
        wrong = self._connection.recv()
        x[:] = self._pixels[: len(x)]
        return wrong

    def status(self) -> int:
        """Waits for its end."""
        return self._process.wait()


def _start(*handles: int) -> subprocess.Popen[bytes]:
    root = os.path.dirname(os.path.dirname(os.path.abspath(images.__file__)))
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, *sys.path])),
        "OPENBLAS_NUM_THREADS": "1",  # numpy would start one per core
    }
    # A scheduler may signal every process of a job, and Ctrl-C every process of a session. The parent may still need
    # this process until it ends, so neither signal may reach it, not even before it runs Python.
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
    """A file of this many bytes that has no name and that processes can map."""
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
    connection.send(None)
    while True:
        wrong = {}
        for i, item in enumerate(connection.recv()):
            try:
                pixels[i] = images.decode(item if isinstance(item, bytes) else Path(item).read_bytes(), form)
            except (ValueError, OSError) as error:
                wrong[i] = " ".join(str(error).split())
        connection.send(wrong)


if __name__ == "__main__":
    with contextlib.suppress(*_DIED):
        serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
