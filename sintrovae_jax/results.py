"""WORKDIR/results.json: the final metrics of a run."""

import json
import math
from pathlib import Path

from sintrovae_jax import files

FILE = "results.json"


def write(workdir: Path, results: dict) -> Path:
    """Writes results.json, a flat object. Non-finite numbers become null, as JSON has none. Returns its path."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in results.items()}
    files.write_text(workdir / FILE, json.dumps(clean, indent=2) + "\n")
    return workdir / FILE


def read(workdir: Path) -> dict:
    """The workdir's results.json, {} where there is none that can be read."""
    try:
        return json.loads((workdir / FILE).read_text())
    except (OSError, ValueError):
        return {}
