"""Cancelling work that takes minutes, such as an evaluation: it asks between its parts whether it should go on."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

_asked: contextvars.ContextVar[Callable[[], bool] | None] = contextvars.ContextVar("asked", default=None)


class Cancelled(BaseException):
    """Ends the work. Not an `Exception`: nothing that handles errors on the way should stop it."""


@contextlib.contextmanager
def cancelled_by(asked: Callable[[], bool]) -> Iterator[None]:
    """Work within the block raises `Cancelled` at its next `check` once asked() is true."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def check() -> None:
    """To be called between the parts of what takes long. Raises `Cancelled` where somebody asked for the end of it."""
    asked = _asked.get()
    if asked is not None and asked():
        raise Cancelled
