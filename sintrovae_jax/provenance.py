"""How a run was made, for its report: the recipe, the data, and for each session the versions, devices and commit.

Kept in the workdir as run.json. Only reports use it, so whatever cannot be found out is left out.
"""

import importlib.metadata
import json
import logging
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

import sintrovae_jax
from sintrovae_jax import config as configs
from sintrovae_jax import files, workdirs
from sintrovae_jax.data.source import Source
from sintrovae_jax.parallel import first_line

log = logging.getLogger(__name__)
_SESSIONS, _FILES = 100, 100  # the most sessions, and names of skipped files, that are kept
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "tensorflow-cpu")


class Recipe(NamedTuple):
    """A recipe as the command line named it, and its own values {key: value}, before any override."""

    name: str
    values: Mapping[str, Any]


def read(workdir: Path) -> dict[str, Any]:
    """The content of run.json; {} if it is absent. Raises ValueError or OSError if it cannot be read."""
    try:
        stored = files.read_json(workdir / workdirs.RUN)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if not isinstance(stored, dict):
        raise ValueError("it is no object")
    return stored


def write(workdir: Path, source: Source, step: int, recipe: Recipe | None = None) -> None:
    """Adds this session, which starts at `step`, to run.json. A failure is only a warning: no run depends on it.

    recipe: None keeps the recipe in run.json, for a run that is resumed from its workdir alone.
    """
    try:
        stored = read(workdir)
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s): written anew", workdir / workdirs.RUN, first_line(error))
        stored = {}
    if recipe:
        defaults = configs.flatten(configs.default())
        own = {name: value for name, value in recipe.values.items() if value != defaults.get(name)}
        stored["recipe"] = {"name": recipe.name, "values": own}
    skipped = dict(sorted(source.skipped.items())[:_FILES])
    stored["data"] = {"examples": source.count, "skipped": len(source.skipped), "skipped_files": skipped}
    before = stored.get("sessions")
    stored["sessions"] = [*(before if isinstance(before, list) else []), _session(step)][-_SESSIONS:]
    try:
        files.write_text(workdir / workdirs.RUN, json.dumps(stored, indent=2) + "\n")
    except Exception as error:  # the libraries for remote files raise all kinds
        log.warning("%s", first_line(error))


def _session(step: int) -> dict[str, Any]:
    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "step": step,
        "devices": dict(kinds),
        "processes": jax.process_count(),
        "versions": _versions(),
        **_commit(),
    }


def _versions() -> dict[str, str]:
    """The versions of this package, of Python, and of the packages that compute."""
    out = {"sintrovae_jax": sintrovae_jax.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def _commit() -> dict[str, Any]:
    """The commit of this package's files, and whether they differ from it; {} outside a git checkout."""
    folder = Path(__file__).parent
    # A package that is installed inside another project's checkout is not part of that checkout.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {}
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--", ".")
    return {"commit": commit, "changed": bool(changes)} if commit else {}


def _git(folder: Path, *command: str) -> str | None:
    """The output of git; None if it fails, is not installed or takes long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *command],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
