"""Writing files whole or not at all: beside their place, then renamed over it."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from sintrovae_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it replaces `path` if the block ends well and is removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """Yields a folder beside `target` to fill; it is renamed to `target` if the block ends well, and removed if not.

    Raises `UserError` if there is something at the target, or it is remote, or cannot be written.
    """
    target = place(target)
    if "://" in str(target):
        raise UserError(f"{target}: write to a local folder, then copy it")
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists already; choose another place")
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        yield beside
        os.replace(beside, target)
    except OSError as error:
        raise UserError(f"cannot write to {target}: {error.strerror}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def expanded(path: str | Path) -> Path:
    """A path with ~ for the user's home; as it is, without an error, where nobody has one."""
    return Path(os.path.expanduser(path))


def place(path: str | Path) -> epath.Path:
    """Where something is: local, then absolute and with ~ for the user's home; or remote, as gs://…

    Raises `UserError` for a kind of place that does not exist.
    """
    path = os.fspath(path)
    if not path:
        raise UserError("an empty path")
    try:
        return epath.Path(path if "://" in path else os.path.abspath(expanded(path)))
    except KeyError as kind:
        raise UserError(f"there are no paths of the kind {kind.args[0]}: {path}") from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text)


def writable(folder: Path) -> None:
    """Makes a folder. Raises `UserError` if it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write to the workdir {folder}: {error.strerror}; choose another --workdir") from None
