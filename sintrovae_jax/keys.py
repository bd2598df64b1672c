"""The definition of a config key: its default, its meaning and its allowed values."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

from sintrovae_jax.errors import UserError


class Check(NamedTuple):
    """fits: value -> bool. says: the requirement, as the end of a message that begins with 'KEY=VALUE '."""

    fits: Callable[[Any], bool]
    says: str


class Key(NamedTuple):
    """default: what a recipe starts from. about: the meaning, with the unit. check: the allowed values; None: all."""

    default: Any
    about: str = ""
    check: Check | None = None


class Optional(NamedTuple):
    """The default of a key that is derived from other values: only the type is known."""

    type: type


def at_least(low: float) -> Check:
    return Check(lambda v: v >= low, f"must be at least {low}")


def between(low: float, high: float) -> Check:
    return Check(lambda v: low <= v <= high, f"must be from {low:g} to {high:g}")


def one_of(*choices) -> Check:
    return Check(lambda v: v in choices, f"is none of {', '.join(map(str, choices))}")


def each_at_least(low: float, kind: type = numbers.Real) -> Check:
    """For a tuple: checks the type and the size of every element."""
    name = "whole numbers" if kind is int else "numbers"
    return Check(
        lambda v: all(isinstance(element, kind) and element >= low for element in v),
        f"must be {name} of at least {low}, as in '({low},)', or '()' for none",
    )


ABOVE_0 = Check(lambda v: v is None or v > 0, "must be above 0")
COLOUR = Check(
    lambda v: len(v) == 3 and all(isinstance(level, int) and 0 <= level <= 255 for level in v),
    "must be red, green and blue of 0 to 255, as in '(255,255,255)'",
)


def check(keys: dict[str, Key], values: dict[str, Any]) -> None:
    """Raises `UserError` for the first value that is not allowed. values: by key, with tuples as lists."""
    for key, value in values.items():
        for element in value if isinstance(value, list) else [value]:
            if isinstance(element, numbers.Real) and not math.isfinite(element):
                raise UserError(f"{key}={element} is not a finite number")
    for name, key in keys.items():
        if key.check and not key.check.fits(values[name]):
            value = values[name]
            shown = repr(value) if isinstance(value, str) else value
            raise UserError(f"{name}={shown} {key.check.says}")
