"""Processes that read pictures, several at once: Pillow's threads wait for each other at Python's lock.

They import `images` alone, and end with the `Readers` or the process that started them. What to read goes to them
through a socket (`multiprocessing.connection`), pixels come back through shared memory. Pillow's settings (such as
`ImageFile.LOAD_TRUNCATED_IMAGES`) of the process that started them are not theirs.
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

import numpy as np

from sintrovae_jax.data import images
from sintrovae_jax.data.images import Format

_DIED = (EOFError, OSError)  # of a connection whose other end is gone, perhaps in the middle of a message
_TRIES = 3
_MOST = 32  # which read pictures of 256 × 256 faster than any step takes them
_SHARED_BYTES = 2**22  # of the pixels that a process hands over at once


class Readers:
    """`count` processes, each started when it is first needed; one for each core if none is given, but not too many."""

    def __init__(self, form: Format, count: int = 0):
        self._form, self.count = form, count or min(cores(), _MOST)
        self._at_once = max(1, _SHARED_BYTES // int(np.prod(form.shape)))
        self._idle, self._pool = queue.LifoQueue(), ThreadPoolExecutor(self.count)
        for _ in range(self.count):
            self._idle.put(None)  # one that is not started

    def read(self, items: Sequence[str | bytes], x: np.ndarray) -> dict[int, str]:
        """Reads pictures, by their paths or from their bytes, into x, uint8 [N, size, size, channels].

        Returns {place: what is wrong} of those that cannot be read, among them any that a process dies of. May be
        called from several threads at once.
        """
        parts = [slice(first, None, self.count) for first in range(min(self.count, len(items)))]
        results = self._pool.map(lambda part: self._part(items[part], x[part]), parts)
        each = zip(parts, results, strict=True)
        return {part.start + i * part.step: why for part, wrong in each for i, why in wrong.items()}

    def _part(self, items, x) -> dict[int, str]:
        """The same, by one process."""
        reader, wrong = self._idle.get(), {}
        try:
            for first in range(0, len(items), self._at_once):
                some = slice(first, first + self._at_once)
                reader = reader or _Reader(self._form, self._at_once)
                try:
                    found = reader.read(items[some], x[some])
                except _DIED:  # perhaps killed for nothing that it did, perhaps of a picture: then which?
                    reader, found = self._one_by_one(items[some], x[some])
                wrong |= {first + i: why for i, why in found.items()}
            return wrong
        finally:
            self._idle.put(reader)

    def _one_by_one(self, items, x) -> tuple:
        """The process that is left (or None), and what is wrong."""
        reader, wrong = None, {}
        for i in range(len(items)):
            for _ in range(_TRIES):
                reader = reader or _Reader(self._form, self._at_once)
                try:
                    found = reader.read(items[i : i + 1], x[i : i + 1])
                    break
                except _DIED:
                    found, reader = {0: f"the process that read it ended with {reader.status()}"}, None
            if found:
                wrong[i] = found[0]
        return reader, wrong


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Reader:
    """One process, seen from the one that starts it. Raises `RuntimeError` if it cannot start."""

    def __init__(self, form: Format, at_once: int):
        for _ in range(_TRIES):
            status = self._begin(form, (at_once, *form.shape))
            if status is None:
                weakref.finalize(self, _stop, self._connection, self._process).atexit = False
                return
            if status >= 0:  # it was not killed: another would end so too
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

    def read(self, items, x) -> dict[int, str]:
        self._connection.send(items)
        wrong = self._connection.recv()
        x[:] = self._pixels[: len(x)]
        return wrong

    def status(self) -> int:
        """Waits for its end."""
        return self._process.wait()


def _start(*handles: int) -> subprocess.Popen:
    here = os.path.dirname(os.path.dirname(os.path.abspath(images.__file__)))
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [here, *sys.path])),
        "OPENBLAS_NUM_THREADS": "1",  # numpy would start one per core
    }
    # A notice to stop may go to every process of a job, and Ctrl-C to all of a session. The process that starts this
    # one may have much to do before it ends, so neither is to reach this one, not even before it runs Python.
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


def _stop(connection: Connection, process: subprocess.Popen) -> None:
    connection.close()
    process.kill()
    process.wait()


def _memory(size: int):
    """A file of so many bytes that has no name and that processes can map."""
    on_linux = hasattr(os, "memfd_create")
    file = os.fdopen(os.memfd_create("pixels"), "r+b") if on_linux else tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file


def _mapped(handle: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(handle, int(np.prod(shape))), np.uint8).reshape(shape)


def serve(connection: Connection, memory: int) -> None:
    """Reads the pictures that it is told to, until the other end is gone."""
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
    with contextlib.suppress(_DIED):
        serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
