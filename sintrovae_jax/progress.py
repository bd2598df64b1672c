"""Long work says in the log how far it is."""

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

log = logging.getLogger(__name__)
SECONDS = 20.0  # between two lines
_T = TypeVar("_T")


def counted(items: Iterable[_T], what: str, total: int | None = None, each: int = 1) -> Iterator[_T]:
    """The items. Every 20 seconds, a line such as 'WHAT: 30 of 100' says how many have been worked on.

    each: what one item counts. total: what all count, if it is not their number times `each`.
    """
    if total is None and isinstance(items, Sized):
        total = len(items) * each
    last = time.monotonic()
    for number, item in enumerate(items):
        if number and time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            log.info("%s: %d%s", what, number * each, "" if total is None else f" of {total}")
        yield item
