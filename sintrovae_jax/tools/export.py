"""Exports a workdir's model: one checkpoint, without the optimisers. It loads as any other, but cannot be trained on.

    python -m sintrovae_jax.tools.export WORKDIR OUT [--step STEP] [--stablehlo]

OUT has config.json, the networks to sample from (the averaged ones where the run has them) with the BatchNorm averages
that they were scored with, and results.json if its metrics are of this step. With --stablehlo it has programs instead,
which need JAX alone (`tools.stablehlo`).
"""

import contextlib
from pathlib import Path

from sintrovae_jax import checkpoint, cli, files, inference, parallel, standing, train_state, workdirs
from sintrovae_jax import config as configs
from sintrovae_jax.errors import UserError
from sintrovae_jax.tools import stablehlo


def export(path: str | Path, target: str | Path, at: int | str | None = None) -> int:
    """Writes a model to a new folder, atomically. Returns its step.

    path, at: as `inference.load` takes them. Raises `UserError` for what `load` raises, and if the target exists or
    cannot be written.
    """
    model = inference.load(path, at, batch_norm="running")
    workdir = inference.locate(path)[0]
    with files.new_folder(target) as folder:
        try:
            with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
                checkpoints.save_networks(model.step, model.variables, ema=train_state.has_ema(model.config))
        except Exception as error:  # whatever Orbax and its storage layers raise where they cannot write
            raise UserError(f"cannot write to {target}: {parallel.first_line(error)}") from error
        configs.write(model.config, folder)
        standing.copy(workdir, model.step, folder)
        metrics = workdirs.read_results(workdir)
        if metrics.get("step") == model.step:
            workdirs.write_results(folder, metrics)
    return model.step


def export_programs(path: str | Path, target: str | Path, at: int | str | None = None) -> int:
    """Writes a model's programs (`tools.stablehlo`) to a new folder, atomically. Returns its step.

    path, at: as `inference.load` takes them. Raises `UserError` for what `load` raises, and if the target exists or
    cannot be written.
    """
    model = inference.load(path, at)
    stablehlo.write(model, target)
    return model.step


def main(argv: list[str]) -> None:
    """The command line. Raises `UserError`."""
    parser = cli.Parser(
        "tools.export",
        "WORKDIR OUT [--step STEP] [--stablehlo]",
        "Exports a workdir's model: one checkpoint, without the optimisers.",
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="or one checkpoint of it, WORKDIR/checkpoints/STEP")
    parser.add_argument("out", metavar="OUT", help="a new folder")
    parser.add_argument("--step", default="latest", help="a step, best or latest (the default)")
    parser.add_argument("--stablehlo", action="store_true", help="programs that need JAX alone, not a checkpoint")
    args = parser.parse(argv[1:])
    function = export_programs if args.stablehlo else export
    step = function(args.workdir, args.out, workdirs.step_of(args.step))
    print(f"{args.out}: step {step} of {args.workdir}")


if __name__ == "__main__":
    cli.start(main)
