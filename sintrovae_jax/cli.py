"""What the command lines of this project share: the --config flag, and user errors as one line."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from sintrovae_jax import config as configs
from sintrovae_jax.errors import Diverged, Interrupted, UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, e.g. configs/digits.py.", lock_config=True)


class Parser(argparse.ArgumentParser):
    """A parser that raises its errors as `UserError`, with a one-line message."""

    def error(self, message):
        raise UserError(message)


def _recipe(argv: list[str]) -> tuple[str | None, list[str]]:
    """The path of the recipe of --config, and the arguments with that path for its name. For unparsed flags."""
    argv = list(argv)
    for i, flag in enumerate(argv[1:], 1):
        if flag in ("--config", "-config") and i + 1 < len(argv):
            argv[i + 1] = configs.recipe_path(argv[i + 1])
            return argv[i + 1], argv
        if flag.startswith(("--config=", "-config=")):
            path = configs.recipe_path(flag.split("=", 1)[1])
            argv[i] = f"--config={path}"
            return path, argv
    return None, argv


def parse(argv: list[str]) -> list[str]:
    """Parses flags, after checking for errors that config_flags would report with a traceback. Raises `UserError`."""
    if not any(a.startswith(("--help", "-help")) for a in argv):
        path, argv = _recipe(argv)
        if path is None:
            raise UserError("no recipe given: add --config configs/NAME.py")
        given = [a.lstrip("-").removeprefix("config.") for a in argv if a.startswith(("--config.", "-config."))]
        configs.read_recipe(path)
        configs.check_keys(key.split("=", 1)[0] for key in given)
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; values are given as --config.key=value")
    return rest


def reporting(function: Callable) -> Callable:
    """Ends the program with one line and an exit code after an error that is not a bug."""

    def wrapped(argv):
        try:
            return function(argv)
        except (UserError, Diverged, Interrupted) as error:
            kind = "stopped" if isinstance(error, Interrupted) else "error"
            print(f"{kind}: {error}", file=sys.stderr, flush=True)
            if isinstance(error, UserError) and jax.distributed.is_initialized():
                os._exit(error.exit_code)  # as below: the error may be on this process only
            sys.exit(error.exit_code)
        except (Exception, KeyboardInterrupt) as error:
            if not jax.distributed.is_initialized():
                raise
            # A normal exit would wait for the other processes, which are waiting for this one.
            traceback.print_exc()
            os._exit(128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1)

    return wrapped


def start(main: Callable) -> None:
    """Runs `main(argv)` as a program."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    app.run(reporting(main), flags_parser=reporting(parse))
