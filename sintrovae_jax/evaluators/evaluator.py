"""What an evaluator is: one record, which its module defines and `evaluators.EVALUATORS` lists."""

import dataclasses
from collections.abc import Callable

from sintrovae_jax.keys import Key


def _nothing(*_):
    pass


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One question about a model.

    evaluate: (`scoring.Scoring`) -> {metric: number, or a text that says what the numbers depend on}; its figures go to
    `scoring.folder`. metrics: (config) -> the names of those that a checkpoint can be the best by. keys: its part of
    the config, under `eval.NAME`. check: (config), raises `UserError` where it cannot work. check_source: (config,
    source, kept), the same before a run that ends with it; kept: see `Scoring`.
    """

    evaluate: Callable
    metrics: Callable[..., tuple[str, ...]]
    keys: dict[str, Key] = dataclasses.field(default_factory=dict)
    check: Callable = _nothing
    check_source: Callable = _nothing
