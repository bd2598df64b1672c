"""Runs the evaluators that a config names, and writes results.json."""

import json
import logging
import math
from pathlib import Path

from sintrovae_jax import evaluators, files, pictures
from sintrovae_jax.inference import Model

log = logging.getLogger(__name__)
FILE = "results.json"


def figures_of(model: Model, source, workdir: Path) -> dict[str, float]:
    """The figures of every evaluator in `config.eval.evaluators`; their pictures go to WORKDIR/figures."""
    out = {}
    for name in model.config.eval.evaluators:
        evaluator = evaluators.get(name)
        args = (model.config.eval.num_samples, model.config.seed, workdir / pictures.FOLDER)
        out |= evaluator.evaluate(model, source, *args)
    if out:
        log.info("evaluation at step %d: %s", model.step, "  ".join(f"{k} {v:.4g}" for k, v in out.items()))
    return out


def write_results(workdir: Path, results: dict) -> None:
    """Writes results.json, a flat object; what is not finite becomes null, which JSON can hold."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in results.items()}
    files.write_text(workdir / FILE, json.dumps(clean, indent=2) + "\n")


def read_results(workdir: Path) -> dict:
    """The workdir's results.json, {} where there is none that can be read."""
    try:
        return json.loads((workdir / FILE).read_text())
    except (OSError, ValueError):
        return {}
