"""Shared by this project's command lines: options, recipes with overrides, and user errors as one line."""

import argparse
import difflib
import errno
import faulthandler
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from absl import logging as absl_logging
from ml_collections import ConfigDict

from sintrovae_jax import config as configs
from sintrovae_jax import keys, recipe_files, schema, seeds, streams
from sintrovae_jax.errors import Diverged, Interrupted, Unavailable, UserError

_OVERRIDE = re.compile(r"--(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_SYNTAX = """\
--config.KEY=VALUE gives a key of the recipe another value; the last of several
counts. For example --config.train.steps=500 "--config.model.channels=(16,32)"
All keys, with meanings and defaults: docs/running.md, sintrovae_jax/schema.py"""


class Parser(argparse.ArgumentParser):
    """The options of a command. If one is given twice, the last value counts. Its errors are `UserError`s.

    module: the command's module, within the package. usage: the most important arguments. about: what the command does,
    in one line. recipe: whether it takes --config, and the overrides that `split` finds.
    """

    def __init__(self, module: str, usage: str, about: str, *, recipe: bool = False):
        program = Path(sys.argv[0]).name
        program = program if program.startswith("sintrovae-jax") else f"python -m sintrovae_jax.{module}"
        super().__init__(
            usage=f"{program} {usage}",
            description=about,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=_SYNTAX if recipe else None,
        )
        if recipe:
            self.add_argument(
                "--config",
                metavar="RECIPE",
                help="a recipe's name (digits) or file (configs/digits.py), or RECIPE:ARGUMENT",
            )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options of the arguments (without the program's name and overrides). --help prints them, and exits."""
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(self._unknown(unknown[0]))
        return parsed

    def _unknown(self, argument: str) -> str:
        option = argument.partition("=")[0]
        name, known = option.lstrip("-"), schema.keys()
        near = difflib.get_close_matches(option, self._option_string_actions, n=1, cutoff=0.75)
        if name in known:
            return f"unexpected argument {argument!r}: a key is given as --config.{name}=VALUE"
        if not argument.startswith("-"):
            return f"unexpected argument {argument!r}; values are given as --config.KEY=VALUE"
        if near:
            return f"unknown option {argument}; did you mean {near[0]}?"
        return f"unknown option {argument}; as a key of the recipe, --config.KEY=VALUE, {keys.hint(name, known)}"


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
    """Splits arguments into overrides {KEY: VALUE}, the last of each key, and the others. Returns (others, overrides).

    An override is --config.KEY=VALUE, --config.KEY VALUE, --config.KEY (then the value is None) or --noconfig.KEY.
    """
    others: list[str] = []
    overrides: dict[str, str | None] = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        found = _OVERRIDE.fullmatch(argument)
        if not found:
            others.append(argument)
            continue
        no, key, value = found.groups()
        if no:
            value = "false"
        elif value is None and waiting and not waiting[0].startswith("--"):
            value = waiting.pop(0)
        overrides[key] = value
    return others, overrides


def read_config(recipe: str | None, overrides: dict[str, str | None], workdir: Path | None = None) -> ConfigDict:
    """The config of --config, or by default the workdir's, with overrides. Raises `UserError`."""
    return configs.override(starting_config(recipe, workdir), overrides)


def starting_config(recipe: str | None, workdir: Path | None = None) -> ConfigDict:
    """The config of --config, or by default the workdir's, before any override. Raises `UserError`."""
    if recipe:
        return configs.read_recipe(recipe)
    if workdir is not None:
        return configs.of_workdir(workdir, anew=True)
    raise UserError(
        "no recipe given: add --config NAME or --config FILE, such as --config digits; --help lists the options"
    )


def default_workdir(recipe: str) -> Path:
    """The default workdir of a recipe: runs/NAME."""
    return Path("runs") / recipe_files.find(recipe).file.stem


_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


def reporting(function: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """Wraps a main function: an error that is not a bug ends the program with one line and an exit code."""

    def wrapped(argv: list[str]) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # it may be replaced
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold any bytes, as on stderr
        try:
            with seeds.pinned(), streams.printing():
                function(argv)
        except KeyboardInterrupt:
            streams.say("stopped: Ctrl-C")
            sys.exit(128 + signal.SIGINT)
        except (UserError, Diverged, Interrupted, Unavailable) as error:
            streams.say(f"{'stopped' if isinstance(error, Interrupted) else 'error'}: {error}")
            sys.exit(error.exit_code)
        except OSError as error:
            if error.errno not in _OF_DISKS:
                raise
            streams.say(f"error: cannot read or write {error.filename or 'an open file'}: {error.strerror}")
            sys.exit(Unavailable.exit_code)

    return wrapped


def start(main: Callable[[list[str]], None]) -> None:
    """Runs `main(argv)` as a program."""
    streams.open_closed()
    streams.quiet_libraries()
    faulthandler.enable()
    absl_logging.set_verbosity(absl_logging.WARNING)
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # set by jax; TensorFlow prints the errors that it raises
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        reporting(main)(sys.argv)
    except SystemExit as end:
        # All processes diverge at the same step, and after a signal save at the same step: they end together.
        together = {Diverged.exit_code, 128 + signal.SIGTERM} if jax.distributed.is_initialized() else set()
        if isinstance(end.code, int) and end.code not in {0, *together}:
            _end(end.code)
        raise
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        _end(1)
    finally:
        streams.flush()


def _end(code: int) -> NoReturn:
    """Ends the program at once, without waiting for other processes, which wait for this one, or for threads of
    libraries.
    """
    streams.flush()
    os._exit(code)
