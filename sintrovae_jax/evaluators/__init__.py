"""Evaluators: one question each, named by `config.eval.evaluators`.

Each module has `evaluate(model, source, num_samples, seed, figures) -> {figure: number}`, with `figures` the folder
for its pictures. A new one is a module here and its name in `EVALUATORS`.
"""

import importlib
from types import ModuleType

from sintrovae_jax.errors import UserError

EVALUATORS = ("density", "latents")


def check(name: str) -> None:
    """Raises `UserError` if there is no such evaluator."""
    if name not in EVALUATORS:
        raise UserError(f"eval.evaluators: {name!r} is none of {', '.join(EVALUATORS)}")


def get(name: str) -> ModuleType:
    """The evaluator module of this name. Raises `UserError` if there is none."""
    check(name)
    return importlib.import_module(f"sintrovae_jax.evaluators.{name}")
