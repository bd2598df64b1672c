"""The files of a workdir: their names, and results.json, the final metrics of a run."""

import json
import math
from pathlib import Path
from typing import Any

from sintrovae_jax import files
from sintrovae_jax.errors import UserError
from sintrovae_jax.parallel import first_line

CONFIG = "config.json"
METRICS = "metrics.csv"
DATA = "data.json"  # the identity of the training data (`data.identity`)
RUN = "run.json"  # how the run was made, session by session (`provenance`)
RESULTS = "results.json"
SAMPLES = "samples.npz"
WANDB = "wandb.json"  # the ids of its Weights & Biases runs, by project
REPORT = "report.html"
FIGURES = "figures"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"  # checkpoints that could not be read
STANDING = "standing"  # standing statistics of checkpoints' BatchNorm (`standing`)
OWNER = "owner.json"  # the process that is training in the workdir (`ownership`)


def write_results(workdir: Path, results: dict[str, Any]) -> Path:
    """Writes results.json, a flat object; numbers that are not finite become null, as JSON needs. Returns its path."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in results.items()}
    files.write_text(workdir / RESULTS, json.dumps(clean, indent=2) + "\n")
    return workdir / RESULTS


def read_results(workdir: Path) -> dict[str, Any]:
    """The content of results.json; {} if there is none. Raises `UserError` if it is not a readable object."""
    path = workdir / RESULTS
    try:
        results = files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): move it away") from None
    if not isinstance(results, dict):
        raise UserError(f"{path} is no object of metrics: move it away")
    return results


def step_of(text: str) -> int | str:
    """A step given as text: a number, or a name that `inference.load` takes."""
    return int(text) if text.isdecimal() else text


def has_checkpoints(workdir: Path) -> bool:
    """Whether there is a checkpoint of any step."""
    folder = workdir / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())
