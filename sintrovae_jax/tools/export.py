"""Exports a workdir's model: one checkpoint, without the optimisers. It loads like any other, but cannot be trained.

    python -m sintrovae_jax.tools.export WORKDIR OUT [--step STEP] [--stablehlo]
    python -m sintrovae_jax.tools.export WORKDIR [OUT] --push hf:USER/NAME [--private] [--data-licence LICENCE]

OUT has config.json, the networks to sample from (the averaged ones if the run has them) with the BatchNorm averages
that they were evaluated with, and results.json if its metrics are for this step. None of these files contains a path of
this machine. With --stablehlo OUT has programs instead, which need only JAX (`tools.stablehlo`). --push uploads the
export to the Hugging Face Hub (`hub`), with a model card (`tools.card`).
"""

import contextlib
import tempfile
from pathlib import Path

from sintrovae_jax import checkpoint, cli, files, hub, inference, parallel, standing, train_state, workdirs
from sintrovae_jax import config as configs
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import Model
from sintrovae_jax.tools import stablehlo


def export(path: str | Path, target: str | Path, at: int | str | None = None) -> int:
    """Writes a model to a new folder, atomically. Returns its step.

    path, at: as `inference.load` takes them. Raises `UserError` for what `load` raises, and if the target exists or
    cannot be written.
    """
    workdir, model = _loaded(path, at)
    with files.new_folder(target) as folder:
        _fill(folder, target, workdir, model)
    return model.step


def _loaded(path: str | Path, at: int | str | None) -> tuple[Path, Model]:
    workdir, at = inference.locate(path, at)
    return workdir, inference.load(workdir, at, batch_norm="running")


def _fill(folder: Path, target: str | Path, workdir: Path, model: Model) -> None:
    """Writes the export of a workdir's model to a folder that becomes `target`."""
    try:
        with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
            checkpoints.save_networks(model.step, model.variables, ema=train_state.has_ema(model.config))
        checkpoint.forget_place(folder)
    except Exception as error:  # whatever Orbax and its storage layers raise if they cannot write
        raise UserError(f"cannot write to {target}: {parallel.first_line(error)}") from error
    configs.write(model.config, folder, places=False)
    standing.copy(workdir, model.step, folder)
    metrics = workdirs.read_results(workdir)
    if metrics.get("step") == model.step:
        workdirs.write_results(folder, {name: value for name, value in metrics.items() if name != "skipped_files"})


def export_programs(path: str | Path, target: str | Path, at: int | str | None = None) -> int:
    """Writes a model's programs (`tools.stablehlo`) to a new folder, atomically. Returns its step.

    path, at: as `inference.load` takes them. Raises `UserError` for what `load` raises, and if the target exists or
    cannot be written.
    """
    model = inference.load(path, at)
    stablehlo.write(model, target)
    return model.step


def push(
    path: str | Path,
    target: str | Path | None,
    to: str,
    at: int | str | None = None,
    *,
    private: bool = False,
    licence: str = "",
) -> str:
    """Exports a model with a model card, and uploads it as one commit. Returns the commit's address.

    path, at: as `inference.load` takes them. target: a new folder to keep; None: keeps none. to: 'hf:USER/NAME'.
    private: whether a new repository is private. licence: the data's licence. Raises the errors of `export`,
    `hub.check` and `hub.push`.
    """
    repository = hub.destination(to)
    hub.check(repository, private)
    from sintrovae_jax.tools import card

    workdir, model = _loaded(path, at)
    with tempfile.TemporaryDirectory() as scratch:
        folder = target or Path(scratch) / "out"
        with files.new_folder(folder) as temporary:
            _fill(temporary, folder, workdir, model)
            card.write(temporary, repository.name, licence)
        return hub.push(files.place(folder), repository, private, f"Step {model.step}")


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "tools.export",
        "WORKDIR OUT [--step STEP] [--stablehlo]; or WORKDIR [OUT] --push hf:USER/NAME [options]",
        "Exports a workdir's model: one checkpoint, without the optimisers.",
    )
    parser.add_argument(
        "workdir", metavar="WORKDIR", help="a workdir, or one of its checkpoints, WORKDIR/checkpoints/STEP"
    )
    parser.add_argument("out", metavar="OUT", nargs="?", help="a new folder; with --push it may be left out")
    parser.add_argument("--step", default="latest", help="a step, best or latest (the default)")
    parser.add_argument("--stablehlo", action="store_true", help="export programs that need only JAX, not a checkpoint")
    parser.add_argument("--push", metavar="hf:USER/NAME", help="upload it to the Hugging Face Hub, with a model card")
    parser.add_argument("--private", action="store_true", help="push: make a new repository private")
    parser.add_argument(
        "--data-licence", metavar="LICENCE", default="", help='push: the licence of the data, as "CC BY-SA 3.0"'
    )
    return parser


def main(argv: list[str]) -> None:
    """The command line. Raises `UserError`, and `Unavailable` if the Hub does not answer."""
    parser = _parser()
    args = parser.parse(argv[1:])
    step = workdirs.step_of(args.step)
    if args.push is None:
        if not args.out:
            parser.error("the following arguments are required: OUT")
        if args.private or args.data_licence:
            raise UserError(f"{'--private' if args.private else '--data-licence'} is for --push")
        function = export_programs if args.stablehlo else export
        print(f"{args.out}: step {function(args.workdir, args.out, step)} of {args.workdir}")
        return
    if args.stablehlo:
        raise UserError("--push is for checkpoints, which run no code: not with --stablehlo")
    print(push(args.workdir, args.out, args.push, step, private=args.private, licence=args.data_licence))


if __name__ == "__main__":
    cli.start(main)
