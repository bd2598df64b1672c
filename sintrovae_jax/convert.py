"""Checkpoints of the official PyTorch release as workdirs, and back. Needs torch (the extra `convert`).

    python -m sintrovae_jax.convert official.pth --config configs/NAME.py [--workdir DIR] [--step N]
    python -m sintrovae_jax.convert --to-torch WORKDIR OUT.pth

The workdir can be loaded, evaluated and trained on as any other; optimisers start afresh, as the official ones do. It
stands at the file's iteration for 2D densities, which the release counts; where the last level is wholly blended in for
style-based networks, which show what the step says; else at 0, as epochs say little of steps. --step N: there instead.
"""

import argparse
import contextlib
import io
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from sintrovae_jax import checkpoint, cli, files, official, state, step
from sintrovae_jax import config as configs
from sintrovae_jax.errors import UserError

_NEEDS_TORCH = "PyTorch's files need torch: install the extra `convert`"
# The style-based release's history of losses is of these classes: they are read as empty ones, and not used.
_IGNORED = tuple(type(name, (), {"__module__": "tracker"}) for name in ("RunningMeanTorch", "RunningMean"))


UNUSED = "official.npz"  # of a converted workdir: what nothing computes with, to be written back
_COPIES = {
    "target": "target decoder (objective.target_period)",
    "ema": "averaged networks (train.ema, growth.ema_images)",
}


class Official(NamedTuple):
    """What a file holds: its tensors, by name, its epoch (2D: iteration), and whether it is a style-based model's."""

    tensors: dict[str, np.ndarray]
    epoch: int
    style: bool


def read(path: Path) -> Official:
    """An official checkpoint. Runs no code of the file. Raises `UserError` if it cannot be read or is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        import torch
    except ImportError:
        raise UserError(_NEEDS_TORCH) from None
    try:
        with torch.serialization.safe_globals(_IGNORED):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch, pickle and zipfile raise where a file is not one of theirs
        raise UserError(f"{path} is no file of tensors alone, or is damaged ({type(error).__name__})") from None
    models = content.get("models") if isinstance(content, Mapping) else None
    try:
        if models is not None:
            tensors = {f"{model}.{name}": _array(t) for model, named in models.items() for name, t in named.items()}
        else:
            tensors = {name: _array(tensor) for name, tensor in content["model"].items()}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no official checkpoint: it has no tensors in 'model' or 'models'") from None
    epoch = content.get("epoch", 0)
    return Official(tensors, epoch if isinstance(epoch, int) else 0, models is not None)


def _array(tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def write(path: Path, content: dict) -> None:
    """Saves a dictionary whose leaves may be arrays, which become tensors. Raises `UserError` if it cannot."""
    try:
        import torch
    except ImportError:
        raise UserError(_NEEDS_TORCH) from None

    def saved(value):
        if isinstance(value, dict):
            return {key: saved(v) for key, v in value.items()}
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    try:
        with files.replacing(path) as beside:
            torch.save(saved(content), beside)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def from_torch(source: Path, config, workdir: Path, at: int | None = None) -> int:
    """Makes a workdir of an official checkpoint. Returns the step it stands at: `at`, or what is sensible.

    Raises `UserError`, and writes nothing, if the file or step does not fit the config or the workdir is in use.
    """
    configs.validate(config)
    if (workdir / "config.json").exists() or (workdir / checkpoint.FOLDER).exists():
        raise UserError(f"{workdir} holds a run already; choose another --workdir")
    file = read(source)
    if file.style != (config.model.family == "style"):
        kind = "is" if file.style else "is not"
        raise UserError(f"{source} {kind} of a style-based model, and model.family={config.model.family}")
    at = _step(config, file) if at is None else at
    if at % config.train.substeps or not 0 <= at <= config.train.steps:
        raise UserError(
            f"--step {at} must be a multiple of train.substeps={config.train.substeps} from 0 to "
            f"train.steps={config.train.steps}"
        )
    try:
        variables = official.from_official(config, file.tensors)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    _save(config, fresh_state(config, variables, at), workdir)
    with files.replacing(workdir / UNUSED) as beside:
        np.savez(beside, **official.unused(config, file.tensors))
    for copy in official.copies_made(config, file.tensors):
        print(f"{source} has no {_COPIES[copy]}: made as a copy")
    return at


def _step(config, file: Official) -> int:
    """Where a run stands that goes on from this file."""
    substeps, last = config.train.substeps, config.train.steps
    if config.model.family == "mlp":
        return min(file.epoch, last) // substeps * substeps
    if not file.style or not config.growth.steps:
        return 0
    # The first step at which the top level has been trained wholly blended in, if the run gets there.
    grown = sum(config.growth.steps[:-1]) + config.growth.steps[-1] // 2 + 1
    return min(math.ceil(grown / substeps) * substeps, last)


def fresh_state(config, variables: dict, at: int) -> state.TrainState:
    """A training state of these variables (`official.from_official`) at a step, with fresh optimisers, on the host."""
    networks = step.from_config(config)[0]

    def network(name):
        stats = dict(variables[name])
        return state.NetworkState(params=stats.pop("params"), stats=stats, opt_state=None)

    copies = {name: variables.get(name) for name in ("target", "ema")}
    host = state.TrainState(np.asarray(at, np.int32), network("encoder"), network("decoder"), **copies)
    return state.reset_optimizers(networks, host)


def _save(config, host: state.TrainState, workdir: Path) -> None:
    files.writable(workdir)
    with contextlib.closing(checkpoint.Checkpoints(workdir, config.checkpoint.keep)) as checkpoints:
        checkpoints.save(host)
    configs.write(config, workdir)


def to_torch(workdir: Path, target: Path) -> int:
    """Writes a workdir's newest checkpoint as an official one; its 'epoch' is our step. Returns the step.

    Raises `UserError` if there is none, the release has no such networks, or the file cannot be written.
    """
    config = configs.read(workdir)
    if config is None or not (workdir / checkpoint.FOLDER).is_dir():
        raise UserError(f"no checkpoint in {workdir}; train first, or name another workdir")
    official.table(config)  # whether the release has such networks
    with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as checkpoints:
        host = checkpoints.restore(jax.eval_shape(step.from_config(config)[2]))
    if host is None:
        raise UserError(f"no checkpoint in {workdir}; train first, or name another workdir")
    copies = {"target": host.target, "ema": host.ema}
    variables = host.variables | {name: tree for name, tree in copies.items() if tree is not None}
    unused = np.load(workdir / UNUSED) if (workdir / UNUSED).exists() else {}
    tensors = official.to_official(config, variables, unused)
    write(target, _content(config, tensors, int(host.step)))
    return int(host.step)


def _content(config, tensors: dict, at: int) -> dict:
    """The file's dictionary, as the release's own code reads it."""
    if config.model.family != "style":
        return {"epoch": at, "model": tensors}
    models = {}
    for name, tensor in tensors.items():
        model, rest = name.split(".", 1)
        models.setdefault(model, {})[rest] = tensor
    return {"models": models, "auxiliary": {}}


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="python -m sintrovae_jax.convert", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="official.pth; with --to-torch: WORKDIR OUT.pth")
    parser.add_argument("--to-torch", action="store_true", help="write an official checkpoint of a workdir")
    parser.add_argument("--config", help="the recipe, e.g. configs/cifar10.py; values as --config.key=value")
    parser.add_argument("--workdir", help="where the run will live (default: runs/NAME of the recipe)")
    parser.add_argument("--step", type=int, help="the step that the workdir stands at")
    return parser


def main(argv: list[str]) -> None:
    """The command line. Raises `UserError`."""
    args, overrides = _parser().parse_known_args(argv[1:])
    if len(args.paths) != 1 + args.to_torch:
        raise UserError("name one official.pth to convert, or with --to-torch WORKDIR OUT.pth")
    if args.to_torch:
        if args.config or args.workdir or args.step is not None or overrides:
            raise UserError("--to-torch takes WORKDIR OUT.pth alone: the config is the workdir's")
        at = to_torch(Path(args.paths[0]), Path(args.paths[1]))
        print(f"{args.paths[1]}: step {at} of {args.paths[0]}")
        return
    cli.parse([argv[0], *([f"--config={args.config}"] if args.config else []), *overrides])
    config = cli.CONFIG.value
    workdir = Path(args.workdir or Path("runs") / Path(args.config.split(":")[0]).stem)
    at = from_torch(Path(args.paths[0]), config, workdir, args.step)
    print(f"{workdir}: {args.paths[0]}, at step {at} of {config.train.steps}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    cli.reporting(main)(sys.argv)
