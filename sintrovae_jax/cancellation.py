"""Cancelling long work, such as an evaluation: the work calls `check` between its parts."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

_asked: contextvars.ContextVar[Callable[[], bool] | None] = contextvars.ContextVar("asked", default=None)


class Cancelled(BaseException):
    """Ends the work. Not an `Exception`, so that error handlers on the way do not catch it."""


@contextlib.contextmanager
def cancelled_by(asked: Callable[[], bool]) -> Iterator[None]:
    """Work within the block raises `Cancelled` at its next `check` once asked() returns true."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def check() -> None:
    """Call this between the parts of long work. Raises `Cancelled` if cancellation was requested."""
    asked = _asked.get()
    if asked is not None and asked():
        raise Cancelled
