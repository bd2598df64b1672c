"""A workdir's model to hand on: one checkpoint, without the optimisers. It loads as any other and is not trained on.

    python -m sintrovae_jax.export WORKDIR OUT [--step STEP | --step best]

OUT has config.json, the networks to sample from (the averaged ones where the run has them), and results.json if its
figures are of this step.
"""

import contextlib
import os
import shutil
import sys

from sintrovae_jax import checkpoint, cli, evaluate, files, inference, step
from sintrovae_jax import config as configs
from sintrovae_jax.errors import UserError


def export(workdir, target, at: int | str | None = None) -> int:
    """Writes a workdir's model to a new folder, whole or not at all. Returns its step.

    at: which step, as `inference.load` takes it. Raises `UserError` for what `load` raises, and if there is something
    at the target or it cannot be written.
    """
    model, target = inference.load(workdir, at), files.place(target)
    if target.exists():
        raise UserError(f"{target} exists already; choose another place")
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    files.writable(beside)
    try:
        with contextlib.closing(checkpoint.Checkpoints(beside)) as checkpoints:
            checkpoints.save_networks(model.step, model.variables, ema=step.has_ema(model.config))
        configs.write(model.config, beside)
        results = evaluate.read_results(files.place(workdir))
        if results.get("step") == model.step:
            evaluate.write_results(beside, results)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return model.step


def main(argv: list[str]) -> None:
    """The command line. Raises `UserError`."""
    parser = cli.Parser(prog="python -m sintrovae_jax.export", description=__doc__.splitlines()[0])
    parser.add_argument("workdir")
    parser.add_argument("out")
    parser.add_argument("--step", help="a step, or 'best' (default: the newest)")
    args = parser.parse_args(argv[1:])
    at = int(args.step) if args.step and args.step.isdigit() else args.step
    print(f"{args.out}: step {export(args.workdir, args.out, at)} of {args.workdir}")


if __name__ == "__main__":
    cli.reporting(main)(sys.argv)
