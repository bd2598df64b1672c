"""The command line: flags, the mode switch, and user errors to one line.

python -m sintrovae_jax.main --config configs/digits.py [--workdir DIR] [--mode MODE] [--config.key=value ...]
"""

import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from sintrovae_jax import config as configs
from sintrovae_jax import evaluators, files, logs, parallel
from sintrovae_jax.errors import Diverged, Interrupted, UserError

MODES = ("train", "eval", "sample", "reconstruct", "interpolate")

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, e.g. configs/digits.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives (default: runs/NAME of the recipe).")
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")


def parse(argv: list[str]) -> list[str]:
    """Parses flags, having checked what config_flags would answer with a traceback. Raises `UserError`."""
    path = None
    for flag, value in zip(argv[1:], [*argv[2:], ""], strict=True):
        if flag.lstrip("-") == "config":
            path = value
        elif flag.startswith(("--config=", "-config=")):
            path = flag.split("=", 1)[1]
    if path is None and not any(a.lstrip("-").startswith("help") for a in argv):
        raise UserError("no recipe given: add --config configs/NAME.py")
    if path is not None:
        recipe = configs.read_recipe(path)
        prefixed = [a.lstrip("-")[len("config.") :] for a in argv if a.startswith(("--config.", "-config."))]
        configs.check_keys(recipe, [key.split("=", 1)[0] for key in prefixed])
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from None


def run(mode: str, config, workdir: Path) -> None:
    """Runs one mode on one workdir. Imports what only that mode needs, so that mistakes are answered at once."""
    if mode not in MODES:
        raise UserError(f"--mode {mode} is none of {', '.join(MODES)}")
    configs.validate(config)
    for name in config.eval.evaluators:
        evaluators.get(name)
    parallel.initialize(config.distributed)
    logs.setup(parallel.is_main())
    parallel.shard(config.train.batch_size)
    configs.refuse_other(config, workdir)
    files.writable(workdir)
    if mode == "train":
        from sintrovae_jax import train

        train.train(config, workdir)
    else:
        from sintrovae_jax import modes

        modes.run(mode, config, workdir)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; values are given as --config.key=value")
    workdir = Path(_WORKDIR.value or Path("runs") / Path(flags.FLAGS["config"].config_filename).stem)
    run(_MODE.value, _CONFIG.value, workdir)
    return 0


def _reporting(function):
    """Ends the program with one line and the error's exit code where it is not a bug."""

    def wrapped(argv):
        try:
            return function(argv)
        except (UserError, Diverged, Interrupted) as error:
            kind = "stopped" if isinstance(error, Interrupted) else "error"
            print(f"{kind}: {error}", file=sys.stderr)
            sys.exit(error.exit_code)

    return wrapped


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    app.run(_reporting(main), flags_parser=_reporting(parse))
