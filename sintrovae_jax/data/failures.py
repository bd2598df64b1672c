"""Errors of the input pipeline in the form in which they were raised.

TensorFlow, which runs the pipeline in threads of its own, raises errors that hold the traceback of another as text.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import tensorflow as tf

from sintrovae_jax.errors import Unavailable
from sintrovae_jax.parallel import first_line

P = ParamSpec("P")
T = TypeVar("T")
_errors: contextvars.ContextVar[list[Exception]] = contextvars.ContextVar("errors")
# What files and networks do to TensorFlow.
_OF_FILES = (
    *(tf.errors.NotFoundError, tf.errors.PermissionDeniedError, tf.errors.UnauthenticatedError),
    *(tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError, tf.errors.UnknownError),
    *(tf.errors.ResourceExhaustedError, tf.errors.DataLossError, tf.errors.FailedPreconditionError),
)


@contextlib.contextmanager
def noting() -> Iterator[list[Exception]]:
    """Yields a list of the errors of `noted` functions in the datasets that are built within the block, which come when
    these are read.
    """
    token = _errors.set([])
    try:
        yield _errors.get()
    finally:
        _errors.reset(token)


def noted(function: Callable[P, T]) -> Callable[P, T]:
    """The function, for a dataset."""
    errors = _errors.get([])

    @functools.wraps(function)
    def noting_errors(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            errors.append(error)
            raise

    return noting_errors


@contextlib.contextmanager
def reading(errors: Sequence[Exception] = ()) -> Iterator[None]:
    """For what takes elements from a dataset. Raises, instead of TensorFlow's errors, the first of those that `noting`
    gave, and `Unavailable` where files cannot be read.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if errors:
            raise errors[0] from None
        if not isinstance(error, _OF_FILES):
            raise
        raise Unavailable(f"the data cannot be read: {first_line(error)}") from error
