"""Evaluators: one question each, named by `config.eval.evaluators`.

Each module has `evaluate(model, source, num_samples, seed, figures) -> {figure: number}`, with `figures` the folder
for its pictures. A new one is a module here and a line in `EVALUATORS`.
"""

import importlib
from types import ModuleType

from sintrovae_jax.errors import UserError

# The figures each evaluator gives.
EVALUATORS = {
    "density": ("gnelbo", "kl", "jsd", "paper_kl", "paper_jsd"),
    "latents": ("rec_error", "kl_real", "kl_fake", "kl_recon", "kl_gap"),
}
# Half of the side of the square over which a 2D density is plotted and scored (reference.md, section 2).
HALF_RANGE = {"gaussians8": 2.0, "spirals": 4.0, "checkerboard": 4.0, "rings": 4.0}


def check(config) -> None:
    """Raises `UserError` if the config names an evaluator, or a figure to be best at, that it cannot have."""
    names = config.eval.evaluators
    for name in names:
        if name not in EVALUATORS:
            raise UserError(f"eval.evaluators: {name!r} is none of {', '.join(EVALUATORS)}")
    if "density" in names and config.data.source not in HALF_RANGE:
        raise UserError(f"the density evaluator scores {', '.join(HALF_RANGE)}, not data.source={config.data.source}")
    figures = [figure for name in names for figure in EVALUATORS[name]]
    if config.checkpoint.best and config.checkpoint.best not in figures:
        known = ", ".join(figures) or "none"
        raise UserError(f"checkpoint.best={config.checkpoint.best!r} is no figure of eval.evaluators ({known})")


def get(name: str) -> ModuleType:
    """The evaluator module of this name."""
    return importlib.import_module(f"sintrovae_jax.evaluators.{name}")
