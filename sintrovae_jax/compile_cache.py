"""XLA's persistent compilation cache: later commands read programs that were compiled before from disk."""

import logging
import os
from pathlib import Path

import filelock
import jax

from sintrovae_jax import files
from sintrovae_jax.errors import UserError

log = logging.getLogger(__name__)
OFF = "off"
_LARGEST = 2 * 2**30  # bytes of all programs together; the least recently used ones are deleted first
_SECONDS = 2.0  # programs that compile faster are not kept
_LOCK = 10  # seconds to wait for another process, as jax does


def default_folder() -> Path:
    """The folder for programs unless the user names another. Raises `UserError` if there is no home folder."""
    return files.user_cache() / "sintrovae_jax" / "xla"


def enable(place: str = "") -> None:
    """Keeps compiled programs in a folder, local or remote (a remote one has no size limit); 'off': keeps none.

    '': uses jax's own setting (JAX_COMPILATION_CACHE_DIR) or else `default_folder`. Raises `UserError` if the folder
    cannot be written; for the default folder, only warns.
    """
    if place == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not place and jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    try:
        folder = files.place(place) if place else default_folder()
    except UserError as error:
        if place:
            raise
        log.warning("no compilation cache: %s", error)
        return
    if not files.is_remote(folder):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _tidy(folder)
        except (OSError, NotImplementedError) as error:  # the last: locks on some network file systems
            message = f"no compilation cache in {folder}: {error}"
            if place:
                raise UserError(message) from None
            log.warning("%s", message)
            return
        jax.config.update("jax_compilation_cache_max_size", _LARGEST)
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # their size has no bound


def _tidy(folder: Path) -> None:
    """Removes entries that a process was writing when it was killed, which jax can neither read nor replace."""
    with filelock.FileLock(folder / ".lockfile", timeout=_LOCK):
        for entry in folder.glob("*-cache"):
            if not entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():  # jax writes -atime last
                entry.unlink()
