"""Ownership of a workdir: only one run at a time trains in it, and its process is named in owner.json.

A process on this host is identified by its number and its start time. A process on another host, or without /proc,
shows that it is alive by changing the file every `_BEAT` seconds; a file that has not changed for `_STALE` seconds has
no owner any more. Only changes that a process has seen itself count, because the clocks of hosts and storage differ. A
process that finds another one in the file has lost the workdir, because both took it at the same moment, or because it
showed no sign of life itself.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sintrovae_jax import files, parallel, workdirs
from sintrovae_jax.errors import Unavailable, UserError

log = logging.getLogger(__name__)
_BEAT = 15.0  # seconds
_STALE = 60.0  # several beats, so that a busy host or a slow disk does not cost a run its workdir
_POLL = 3.0
_LARGEST = 2**12  # characters of owner.json


class Holder(NamedTuple):
    """The content of owner.json."""

    host: str = "an unknown host"
    machine: str = ""
    pid: str = "?"
    started: str = ""
    since: str = "?"
    token: str = ""
    beat: str = ""

    def __str__(self) -> str:
        return f"{self.host}, process {self.pid}, since {self.since}"


def _me() -> Holder:
    pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S %z")
    return Holder(socket.gethostname(), _machine(), str(pid), _started(pid), since, uuid.uuid4().hex)


def _machine() -> str:
    """Identifies the scope of process numbers: this boot of the machine, and the container on it. '' if unknown."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _started(pid: int) -> str:
    """The start time of a process, which tells it from later ones with the same number; '' if it does not exist."""
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    return ""


def _lives(holder: Holder) -> bool | None:
    """Whether a holder's process is alive; None if this process cannot know."""
    if holder.machine != _machine() or not (holder.machine and holder.started and holder.pid.isdecimal()):
        return None
    return _started(int(holder.pid)) == holder.started


class Owner:
    """Makes this process the owner of an existing workdir, local or remote, until `release`.

    Waits if an owner on another host may be gone, or about to go. Raises `UserError` if there is another owner, and
    `Unavailable` if the storage cannot be used.
    """

    def __init__(self, workdir: Path):
        self._workdir, self._path, self._me = workdir, workdir / workdirs.OWNER, _me()
        self._take()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show_life, name="owner", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Call this before writing files. Raises `UserError` if another run has taken over the workdir."""
        with files.storing(self._workdir):
            other = self._other()
        if other:
            raise UserError(f"{self._workdir} has another owner now, and nothing more is written: {other}")

    def release(self) -> None:
        """Removes owner.json. If that fails, the file becomes stale."""
        self._over.set()
        self._thread.join(_BEAT)
        with contextlib.suppress(Exception):
            if not self._other():
                self._path.unlink(missing_ok=True)

    def _take(self) -> None:
        began = changed = time.monotonic()
        last: Holder | None = None
        while True:
            with files.storing(self._workdir):
                holder, now = self._read(), time.monotonic()
                lives = _lives(holder) if holder else False
                if last and holder != last:
                    changed = now
                if lives is False or (lives is None and now - changed >= _STALE):
                    self._write()
                    return
            if lives or (now - began >= _STALE and now - changed < 2 * _BEAT):
                raise UserError(f"{self._workdir} is in use: {holder}; stop that run, or use another --workdir")
            if not last:
                log.info("%s is in use: %s; waiting a minute for its end", self._workdir, holder)
            last = holder
            time.sleep(_POLL)

    def _show_life(self) -> None:
        while not self._over.wait(_BEAT):
            with contextlib.suppress(Exception):  # a disk or bucket that is away may come back
                if self._other():
                    return
                self._write()

    def _other(self) -> Holder | None:
        holder = self._read()
        return holder if holder and holder.token != self._me.token else None

    def _read(self) -> Holder | None:
        try:
            values = files.read_json(self._path, _LARGEST)
            return Holder(**{name: str(values[name]) for name in Holder._fields if name in values})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return Holder()

    def _write(self) -> None:
        """Changes the file, or writes it again if it was removed. Creates no folder."""
        beat = uuid.uuid4().hex
        text = json.dumps(self._me._replace(beat=beat)._asdict(), indent=2)
        if files.is_remote(self._path):
            self._path.write_text(text)
            return
        temporary = self._path.with_name(f".{self._path.name}.{beat}")
        try:
            temporary.write_text(text)
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[Callable[[], None]]:
    """Within the block, only this run trains in the workdir. The main process owns it for all processes, which must all
    enter. Creates local folders, and at the end removes those that are empty.

    Yields `Owner.check`. Raises as `Owner` does.
    """
    owner, error, made = None, None, list[Path]()
    if parallel.is_main():
        try:
            with files.storing(workdir):
                if not files.is_remote(workdir):
                    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
                    workdir.mkdir(parents=True, exist_ok=True)
            owner = Owner(workdir)
        except (UserError, Unavailable) as problem:
            error = problem
    try:
        (code,) = map(int, parallel.from_main(error.exit_code if error else 0))
        if code:
            kind = UserError if code == UserError.exit_code else Unavailable
            raise error or kind(f"{workdir} cannot be used: the main process says why")
        yield owner.check if owner else lambda: None
    finally:
        if owner:
            owner.release()
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()
