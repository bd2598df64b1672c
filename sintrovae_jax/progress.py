"""Progress of long work, in the log."""

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

log = logging.getLogger(__name__)
SECONDS = 20.0  # between two lines
_T = TypeVar("_T")


def counted(items: Iterable[_T], what: str, total: int | None = None, each: int = 1) -> Iterator[_T]:
    """Yields the items. Every 20 seconds, logs a line such as 'WHAT: 30 of 100' with the number of finished items.

    each: the count of one item. total: the count of all items, by default their number times `each`.
    """
    if total is None and isinstance(items, Sized):
        total = len(items) * each
    last = time.monotonic()
    for number, item in enumerate(items):
        if number and time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            log.info("%s: %d%s", what, number * each, "" if total is None else f" of {total}")
        yield item
