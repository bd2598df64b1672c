"""The files of a workdir: their names, and results.json, the final metrics of a run."""

import json
import math
from pathlib import Path
from typing import Any

from sintrovae_jax import files

CONFIG = "config.json"
METRICS = "metrics.csv"
RESULTS = "results.json"
SAMPLES = "samples.npz"
FIGURES = "figures"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"  # checkpoints that could not be read


def write_results(workdir: Path, results: dict[str, Any]) -> Path:
    """Writes results.json, a flat object; what is not finite becomes null, which JSON can hold. Returns its path."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in results.items()}
    files.write_text(workdir / RESULTS, json.dumps(clean, indent=2) + "\n")
    return workdir / RESULTS


def read_results(workdir: Path) -> dict[str, Any]:
    """The workdir's results.json, {} where there is none that can be read."""
    try:
        return json.loads((workdir / RESULTS).read_text())
    except (OSError, ValueError):
        return {}
