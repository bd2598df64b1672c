"""Standard streams: closed ones, ones that nobody reads any more, and the output of libraries."""

import contextlib
import logging
import os
import select
import signal
import stat
import sys
from collections.abc import Iterator


def open_closed() -> None:
    """Opens the null device for every standard stream that was closed when Python started.

    Otherwise the next file that is opened would take its number, and the output of libraries would go into that file.
    """
    opened, null = [], os.open(os.devnull, os.O_RDWR)
    while null <= 2:  # the lowest number that is free
        opened.append(null)
        null = os.dup(null)
    os.close(null)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            place = number if number in opened else os.devnull  # a library may have taken it already
            setattr(sys, name, open(place, "w" if number else "r", closefd=place != number))  # noqa: SIM115


def quiet_libraries() -> None:
    """Drops the output of libraries about errors that they also raise, because these are reported in one line.

    gcsfs's warnings (about an account that may not ask for the bucket's layout) are shown once, not for every file.
    """
    said: set[str] = set()

    def first(record: logging.LogRecord) -> bool:
        before = len(said)
        said.add(record.getMessage())
        return len(said) > before

    for name in ("absl", "gcsfs"):  # Orbax and clu use absl's
        logging.getLogger(name).addFilter(lambda record: record.exc_info is None)
    logging.getLogger("gcsfs").addFilter(first)


def unread(number: int) -> bool:
    """Whether a file descriptor is a pipe or socket whose other end is closed."""
    with contextlib.suppress(OSError):
        mode = os.fstat(number).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            poll = select.poll()
            poll.register(number, 0)
            return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    return False


def say(text: str) -> None:
    """Prints to stderr, if that is possible."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """For code that prints to stdout. If nobody reads stdout any more, ends the program as SIGPIPE would."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not unread(1):
            raise
        sys.exit(128 + signal.SIGPIPE)


def flush() -> None:
    """Writes buffered output.

    A stream that cannot be written becomes the null device, because Python would complain about it at exit.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
