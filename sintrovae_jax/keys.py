"""The definition of a config key: its default, its meaning and its allowed values."""

import difflib
import math
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sintrovae_jax.errors import UserError


class Check(NamedTuple):
    """fits: value -> bool. says: the requirement, the end of a message that begins with 'KEY=VALUE '."""

    fits: Callable[[Any], bool]
    says: str


class Key(NamedTuple):
    """default: the value that recipes start from. about: the meaning, with the unit. check: the allowed values."""

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


def one_of(*choices: object) -> Check:
    return Check(lambda v: v in choices, f"is none of {', '.join(map(str, choices))}")


def each_at_least(low: float, kind: type[Any] = numbers.Real) -> Check:
    """For a tuple: checks the type and the size of every element."""
    name = "whole numbers" if kind is int else "numbers"
    return Check(
        lambda v: all(isinstance(element, kind) and element >= low for element in v),
        f"must be {name} of at least {low}, as in '({low},)', or '()' for none",
    )


def widths(most: int) -> Check:
    """For a tuple of the widths of at most `most` layers."""
    return Check(
        lambda v: len(v) <= most and all(isinstance(element, int) and element >= 1 for element in v),
        f"must be whole numbers of at least 1, as in '(64,)', and at most {most} of them",
    )


ABOVE_0 = Check(lambda v: v is None or v > 0, "must be above 0")
COLOUR = Check(
    lambda v: len(v) == 3 and all(isinstance(level, int) and 0 <= level <= 255 for level in v),
    "must be red, green and blue of 0 to 255, as in '(255,255,255)'",
)

PROJECT = Check(
    lambda v: re.fullmatch(r"(?:([^/\\#?%:]{1,128}/)?[^/\\#?%:]{1,128})?", v) is not None,
    r"must be PROJECT or ENTITY/PROJECT, of at most 128 characters each and without any of \ # ? % :",
)


def check(keys: dict[str, Key], values: dict[str, Any]) -> None:
    """Raises `UserError` for the first value that is not allowed. values: by key, with tuples as lists."""
    for name, value in values.items():
        for element in value if isinstance(value, list) else [value]:
            if isinstance(element, int) and not -(2**63) <= element < 2**63:
                raise UserError(f"{name} is a number of more than 64 bits")
            if isinstance(element, numbers.Real) and not math.isfinite(element):
                raise UserError(f"{name}={element} is not a finite number")
    for name, key in keys.items():
        if key.check and not key.check.fits(values[name]):
            value = values[name]
            shown = repr(value) if isinstance(value, str) else value
            raise UserError(f"{name}={shown} {key.check.says}")


_LIKE = 0.75  # the least likeness to an unknown key at which a hint names a key
_NAMED = 3  # the most keys that a hint names


def hint(name: str, known: Mapping[str, Key]) -> str:
    """The end of a message about an unknown key: the keys that were probably meant, or the keys of its section."""
    section = name if any(key.startswith(f"{name}.") for key in known) else name.rpartition(".")[0]
    inside = [key.removeprefix(f"{section}.") for key in known if section and key.rpartition(".")[0] == section]
    if inside and section == name:
        return f"it is a section, of {', '.join(inside)}"
    likeness = {}
    for key, meaning in known.items():
        same_section = key.startswith(f"{section}.")
        # In other sections, a word of the meaning says too little about what was meant.
        likeness[key] = _likeness(name, key, meaning.about if same_section or not inside else "") + 0.2 * same_section
    best = max(likeness.values())
    if best >= _LIKE:
        near = [key for key, like in likeness.items() if like > best - 0.03]
        near = sorted(near, key=lambda key: isinstance(known[key].default, tuple))[:_NAMED]  # single values first
        return f"the nearest {'is' if len(near) == 1 else 'are'} {', '.join(near)}"
    return f"{section} has {', '.join(inside)}" if inside else "none is like it: sintrovae_jax/schema.py has them all"


def _likeness(name: str, key: str, about: str) -> float:
    """How likely `name` was meant to be the key `key`, from 0 to 1.2. Only the last parts of both count."""
    name, key = name.rpartition(".")[2].lower(), key.rpartition(".")[2]
    letters, initials = key.replace("_", ""), "".join(word[0] for word in key.split("_"))
    words = {word for word in _words(name) if len(word) > 1}
    if name == key:
        return 1.2
    if name == initials:
        return 0.95
    like = difflib.SequenceMatcher(None, name.replace("_", ""), letters).ratio()
    if words & _words(key):
        return max(like, 0.85)
    return max(like, 0.8) if words & _words(about) else like


def _words(text: str) -> set[str]:
    """The words of a text or of a key, without the s of a plural."""
    return {word.rstrip("s") for word in re.findall(r"[^\W_]+", text.lower())}
