"""The record that defines an evaluator. Its module creates it, `evaluators.EVALUATORS` lists it."""

import dataclasses
from collections.abc import Callable

from sintrovae_jax.keys import Key


def _nothing(*_):
    pass


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One kind of evaluation of a model.

    evaluate: (`scoring.Scoring`) -> {metric: number, or a text on what the numbers depend on}; writes figures to
    `scoring.folder`. metrics: (config) -> the names that `checkpoint.best` may use. keys: its keys of the config, under
    `eval.NAME`. check: (config), raises `UserError` if it cannot work. check_source: (config, source, kept), the same
    with the source, before training; kept: see `Scoring`. vectors: whether it needs feature vectors, not only their
    moments.
    """

    evaluate: Callable
    metrics: Callable[..., tuple[str, ...]]
    keys: dict[str, Key] = dataclasses.field(default_factory=dict)
    check: Callable = _nothing
    check_source: Callable = _nothing
    vectors: bool = False
