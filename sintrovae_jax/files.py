"""Atomic writing of files, local and remote (gs://…).

A local file is written under a temporary name in the same folder, then renamed. A remote object appears only once it is
complete; libraries that write to a path write to a local file first, which is then copied.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from sintrovae_jax.errors import Diverged, Interrupted, Unavailable, UserError
from sintrovae_jax.parallel import first_line

# The errors of disks and networks. Libraries raise errors of their own, which contain the text of these.
_ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EMFILE, errno.ENFILE, errno.ENOTCONN),
    *(errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET),
)
_REASONS = [os.strerror(number) for number in _ERRNOS]


HUB = "hf:"  # begins the name of a model on the Hugging Face Hub (`hub`)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is outside the local file systems."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """For code that writes to a path. Turns errors of its disk or bucket, whatever library raises them, into
    `Unavailable`. Other errors pass.
    """
    try:
        yield
    except (UserError, Diverged, Interrupted, Unavailable):
        raise
    except Exception as error:  # the libraries for remote files raise all kinds
        reason = storage_reason(error) or (is_remote(path) and first_line(error))
        if not reason:
            raise
        raise Unavailable(f"cannot write {path}: {reason}") from error


def storage_reason(error: BaseException) -> str:
    """The operating system's reason in an error or in its causes; '' if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        text = str(seen)
        if found := [reason for reason in _REASONS if reason in text]:
            return found[0]
        seen = seen.__cause__ or seen.__context__
    return ""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a local path with the same suffix to write to; the file replaces `path` if the block succeeds."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            yield local
            path.write_bytes(local.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_other_encodings(path: str | os.PathLike[str]) -> None:
    """Raises `UserError` for a path that is not UTF-8: Orbax can neither read nor write such paths."""
    try:
        os.path.abspath(os.fspath(path)).encode()
    except UnicodeEncodeError:
        raise UserError(f"{os.fspath(path)} is not in UTF-8, as the paths of workdirs must be: rename it") from None


@contextlib.contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """Yields a folder next to `target` to fill; it is renamed to `target` if the block succeeds, and removed if not.

    Raises `UserError` if the target exists and is not an empty folder, is remote, or cannot be written.
    """
    folder = place(target)
    refuse_other_encodings(folder)
    if is_remote(folder):
        raise UserError(f"{folder}: write to a local folder, then copy it")
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another place")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def resolved(path: str | os.PathLike[str]) -> str:
    """The full path that a user means: absolute, with ~ expanded; remote paths (gs://…) are unchanged.

    Every path that a user gives goes through this function, directly or by `place`. Raises `UserError` for an empty
    path, for ~ without such a home folder, and for a model on the Hub, which is no path (see `inference.locate`).
    """
    path = os.fspath(path)
    if not path:
        raise UserError("an empty path")
    if path.startswith(HUB):
        raise UserError(
            f"{path} is a model on the Hub, which is only read: export it to a folder first, with "
            f"python -m sintrovae_jax.tools.export {path} FOLDER (a folder of this name is ./{path})"
        )
    if is_remote(path):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no such home folder; a file whose name begins with ~ is ./{path}")
    return os.path.abspath(expanded)


def anchored(path: str) -> str:
    """A path that means the same in every folder: relative paths become absolute, paths with ~ and remote ones stay."""
    return path if not path or path.startswith("~") or is_remote(path) else os.path.abspath(path)


def place(path: str | os.PathLike[str]) -> Path:
    """The path that a user gave, `resolved`, as a `Path`; an `epath` path if it is remote.

    Raises `UserError` as `resolved` does, and for an unknown scheme.
    """
    path = resolved(path)
    if not is_remote(path):
        return Path(path)
    _without_listings(path.partition("://")[0])
    try:
        return epath.Path(path)
    except KeyError as kind:
        raise UserError(f"there are no paths of the kind {kind.args[0]}: {path}") from None


def user_cache() -> Path:
    """The user's cache folder. Raises `UserError` if there is no home folder."""
    return place(os.environ.get("XDG_CACHE_HOME") or "~/.cache")


def _without_listings(kind: str) -> None:
    """Turns off fsspec's cache of folder listings, which would hide the changes of other processes."""
    with contextlib.suppress(ImportError):
        from fsspec import config

        config.conf.setdefault(kind, {}).setdefault("use_listings_cache", False)


def read_json(path: Path, most: int = 2**22) -> Any:
    """The content of a JSON file. Raises OSError; ValueError if it is no JSON, too deep or longer than `most`
    characters.
    """
    with path.open() as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise ValueError(f"it has more than {most} characters")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is too deep") from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically. Raises `Unavailable` if it cannot be written."""
    with storing(path), replacing(path) as temporary:
        temporary.write_text(text)


def writable(folder: Path) -> None:
    """Raises `UserError` if a folder cannot be written to or created. Leaves nothing behind."""
    refuse_other_encodings(folder)
    try:
        if is_remote(folder):  # remote folders exist only with content
            trial = folder / f".{uuid.uuid4().hex}"
            trial.write_text("")
            trial.unlink()
        else:
            nearest = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
            tempfile.TemporaryFile(dir=nearest).close()
    except Exception as error:  # the libraries for remote files raise all kinds
        if not (is_remote(folder) or isinstance(error, OSError)):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"cannot write to the workdir {folder}: {reason}; choose another --workdir") from None


def move(folder: Path, to: Path) -> None:
    """Moves a folder to a path that does not exist. Copies all remote objects before deleting the old ones."""
    if not is_remote(folder):
        to.parent.mkdir(exist_ok=True)
        folder.rename(to)
        return
    _copy(folder, to)
    epath.Path(folder).rmtree()


def _copy(folder, to):
    for path in folder.iterdir():
        if path.is_dir():
            _copy(path, to / path.name)
        else:
            (to / path.name).write_bytes(path.read_bytes())
