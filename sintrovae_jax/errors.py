"""The errors that end a run and are not bugs of this project.

`cli.reporting` turns them into one line and an exit code; any other error is a bug and keeps its traceback.
"""

from collections.abc import Sequence


def printable(text: str) -> str:
    """A text on one line, with control characters escaped, because file names may contain any characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Sequence[str], most: int) -> str:
    """Lists the first `most` names, and says how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class UserError(ValueError):
    """Something that the user asked for cannot be done. The message is one line: what is wrong, and what to do."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Unavailable(Exception):
    """Data, storage or a device outside this program cannot be used any more, or not yet.

    The message is one line. Running the same command again may succeed, and launchers do so.
    """

    exit_code = 74  # EX_IOERR of sysexits.h


class Diverged(ArithmeticError):
    """Training reached NaN or infinity. The message names the term and the hyper-parameter to change."""

    exit_code = 3


class Interrupted(Exception):
    """A signal stopped training after a checkpoint was saved. Has the conventional exit code 128 + signal."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum
