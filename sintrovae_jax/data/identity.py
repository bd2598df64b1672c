"""The identity of data, independent of their location. Workdirs keep it, so that no run continues with other data."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sintrovae_jax import files, workdirs
from sintrovae_jax.errors import UserError
from sintrovae_jax.parallel import first_line

_MOST = 2**28  # the most characters of data.json, which has an entry for each file
Mark = list[int | str]  # a part's size or shape, then a checksum if it is known


class Identity(NamedTuple):
    """The parts of a dataset. what: the kind of parts, 'files', 'arrays' or 'splits'."""

    what: str
    parts: Mapping[str, Mark]


def of_arrays(arrays: Mapping[str, np.ndarray]) -> Identity:
    """The identity of a set of arrays by their content."""

    def mark(x: np.ndarray) -> Mark:
        content = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        return [f"{x.dtype} {list(x.shape)}", hashlib.sha256(content.data).hexdigest()]

    return Identity("arrays", {name: mark(x) for name, x in arrays.items()})


def difference(old: Identity, new: Identity) -> str:
    """Says how many parts are new, gone and changed; '' if none are. Checksums that only one has are not compared."""
    both = old.parts.keys() & new.parts.keys()
    counts = {
        "new": len(new.parts.keys() - both),
        "gone": len(old.parts.keys() - both),
        "changed": sum(any(a != b for a, b in zip(old.parts[name], new.parts[name], strict=False)) for name in both),
    }
    listed = ", ".join(f"{count} {how}" for how, count in counts.items() if count)
    return f"{new.what}: {listed}" if listed else ""


def read(workdir: Path) -> Identity | None:
    """The identity of a workdir's training data; None without data.json. Raises `UserError` if that is unreadable."""
    path = workdir / workdirs.DATA
    try:
        stored = Identity(**files.read_json(path, _MOST))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): restore it, or move it away") from None
    if not isinstance(stored.parts, dict) or not all(isinstance(mark, list) for mark in stored.parts.values()):
        raise UserError(f"{path} does not say what the data are: restore it, or move it away")
    return stored


def write(identity: Identity | None, workdir: Path) -> None:
    """Writes the identity of the training data to a workdir; nothing for data that are computed (None)."""
    if identity is not None and identity != read(workdir):
        files.write_text(workdir / workdirs.DATA, json.dumps(identity._asdict()) + "\n")
