"""Errors of the input pipeline, as they were originally raised.

TensorFlow runs the pipeline in its own threads, and raises errors that contain the original traceback only as text.
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
# TensorFlow's errors for problems with files and networks.
_OF_FILES = (
    *(tf.errors.NotFoundError, tf.errors.PermissionDeniedError, tf.errors.UnauthenticatedError),
    *(tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError, tf.errors.UnknownError),
    *(tf.errors.ResourceExhaustedError, tf.errors.DataLossError, tf.errors.FailedPreconditionError),
)


@contextlib.contextmanager
def noting() -> Iterator[list[Exception]]:
    """Yields a list that collects the errors of `noted` functions in datasets built within the block. They occur when
    the datasets are read.
    """
    token = _errors.set([])
    try:
        yield _errors.get()
    finally:
        _errors.reset(token)


def noted(function: Callable[P, T]) -> Callable[P, T]:
    """Wraps a function for use in a dataset, so that its errors are collected."""
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
    """For code that takes elements from a dataset. Instead of TensorFlow's errors, raises the first one that `noting`
    collected, or `Unavailable` if files cannot be read.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if errors:
            raise errors[0] from None
        if not isinstance(error, _OF_FILES):
            raise
        raise Unavailable(f"the data cannot be read: {first_line(error)}") from error
