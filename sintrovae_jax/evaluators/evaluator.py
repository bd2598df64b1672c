"""The record that defines an evaluator. Its module creates it, `evaluators.EVALUATORS` lists it."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from sintrovae_jax.data.source import Source
from sintrovae_jax.keys import Key

if TYPE_CHECKING:
    from sintrovae_jax.evaluators.scoring import Scoring


def _nothing(*_: object) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One kind of evaluation of a model.

    evaluate: (`scoring.Scoring`) -> {metric: number, or a text that says what the numbers depend on}; writes figures to
    `scoring.folder`. metrics: (config) -> the names that `checkpoint.best` may use. keys: its own config keys, under
    `eval.NAME`. check: (config); raises `UserError` if the evaluator cannot work. check_source: (config, source, kept);
    checks the source too, before training; kept: see `Scoring`. vectors: whether it needs the feature vectors, not only
    their moments.
    """

    evaluate: Callable[["Scoring"], dict[str, Any]]
    metrics: Callable[[ConfigDict], tuple[str, ...]]
    keys: dict[str, Key] = dataclasses.field(default_factory=dict)
    check: Callable[[ConfigDict], object] = _nothing
    check_source: Callable[[ConfigDict, Source, dict[Any, Any]], object] = _nothing
    vectors: bool = False
