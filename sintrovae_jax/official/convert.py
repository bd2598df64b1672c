"""Conversion of official PyTorch checkpoints to workdirs, and back. Needs torch (the extra `convert`).

    python -m sintrovae_jax.official.convert official.pth --config configs/NAME.py [--workdir DIR] [--step N]
    python -m sintrovae_jax.official.convert --to-torch WORKDIR OUT.pth

The workdir can be loaded, evaluated and trained like any other; the optimisers start afresh, as in the official code.
Its step is the file's iteration for 2D densities; for style-based networks the step at which the last level is fully
blended in; otherwise 0, because the release counts epochs, not steps. --step N sets another step.
"""

import contextlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import checkpoint, cli, dispatch, files, inference, npy, parallel, train_state
from sintrovae_jax import config as configs
from sintrovae_jax.arrays import Tree
from sintrovae_jax.errors import UserError
from sintrovae_jax.official import layouts, pth

# The style-based release stores its history of losses in these classes. They are read as empty classes and not used.
_IGNORED = tuple(type(name, (), {"__module__": "tracker"}) for name in ("RunningMeanTorch", "RunningMean"))


UNUSED = "official.npz"  # in a converted workdir: the tensors that no network uses, for the way back
_COPIES = {
    "target": "target decoder (objective.target_period)",
    "ema": "averaged networks (train.ema, growth.ema_images)",
}


class Official(NamedTuple):
    """The contents of a file: its tensors by name, its epoch (2D: iteration), and whether the model is style-based."""

    tensors: dict[str, np.ndarray]
    epoch: int
    style: bool


def read(path: Path) -> Official:
    """Reads an official checkpoint without running its code. Raises `UserError` if it is unreadable or another file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    pth.torch()
    try:
        content = pth.load(data, _IGNORED)
    except Exception as error:  # whatever torch, pickle and zipfile raise for other files than theirs
        raise UserError(f"{path} is no file of tensors alone, or is damaged ({type(error).__name__})") from None
    try:
        models = content.get("models")
        if models is not None:
            tensors = {f"{model}.{name}": pth.array(t) for model, named in models.items() for name, t in named.items()}
        else:  # the release for point clouds saves only the tensors
            named = content.get("model", content)
            tensors = {_name(name): pth.array(tensor) for name, tensor in named.items()}
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{path} is no official checkpoint: it has no tensors, in 'model', 'models' or alone") from None
    epoch = content.get("epoch", 0)
    return Official(tensors, max(epoch, 0) if isinstance(epoch, int) else 0, models is not None)


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a tensor's name is a text, not {name!r}")
    return name


def write(path: Path, content: dict[str, Any]) -> None:
    """Saves a dictionary whose leaves may be arrays, which become tensors. Raises `UserError` if it cannot."""
    torch = pth.torch()

    def saved(value):
        if isinstance(value, dict):
            return {key: saved(v) for key, v in value.items()}
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    try:
        with files.replacing(path) as temporary:
            torch.save(saved(content), temporary)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def from_torch(source: Path, config: ConfigDict, workdir: Path, at: int | None = None) -> int:
    """Creates a workdir from an official checkpoint. Returns its step: `at`, or the default step of the file.

    Raises `UserError`, and writes nothing, if the file or step does not fit the config or the workdir exists.
    """
    configs.validate(config)
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
        variables = layouts.from_official(config, file.tensors)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    with files.new_folder(workdir) as folder:
        _save(config, fresh_state(config, variables, at), folder)
        unused: dict[str, Any] = layouts.unused(config, file.tensors)
        np.savez(folder / UNUSED, **unused)
    for copy in layouts.copies_made(config, file.tensors):
        print(f"{source} has no {_COPIES[copy]}: made as a copy")
    return at


def _step(config: ConfigDict, file: Official) -> int:
    """The step at which a run continues from this file."""
    substeps, last = config.train.substeps, config.train.steps
    if config.model.family == "mlp":
        return min(file.epoch, last) // substeps * substeps
    if not file.style or not config.growth.steps:
        return 0
    # The first step at which the top level has been trained fully blended in, if the run gets there.
    grown = sum(config.growth.steps[:-1]) + config.growth.steps[-1] // 2 + 1
    return min(math.ceil(grown / substeps) * substeps, last)


def fresh_state(config: ConfigDict, variables: dict[str, Tree], at: int) -> train_state.TrainState:
    """A training state with these variables (`layouts.from_official`) at a step, with fresh optimisers, on the host."""
    networks = dispatch.from_config(config)[0]

    def network(name):
        stats = dict(variables[name])
        return train_state.NetworkState(params=stats.pop("params"), stats=stats, opt_state=None)

    copies = {name: variables.get(name) for name in ("target", "ema")}
    host = train_state.TrainState(np.asarray(at, np.int32), network("encoder"), network("decoder"), **copies)
    return train_state.reset_optimizers(networks, host)


def _save(config: ConfigDict, host: train_state.TrainState, workdir: Path) -> None:
    with contextlib.closing(checkpoint.Checkpoints(workdir, config.checkpoint.keep)) as checkpoints:
        checkpoints.save(host)
    configs.write(config, workdir)


def to_torch(path: str | Path, target: Path) -> int:
    """Writes a workdir's newest checkpoint, or the given one, as a new official file. Returns the step, its 'epoch'.

    Raises `UserError` if there is none, the release has no such networks, or the file exists or cannot be written.
    """
    if target.exists():
        raise UserError(f"{target} exists already; choose another place")
    workdir, step = inference.locate(path)
    config = inference.config_of(workdir)
    layouts.table(config)  # raises if the release has no such networks
    _, abstract = inference.described(config, workdir)
    copies = [name for name in ("target", "ema") if getattr(abstract, name) is not None]
    with inference.opened(config, workdir, step) as (checkpoints, step):
        try:
            networks, *others = checkpoints.read_all(step, abstract, ["networks", *copies])
            unused = _unused(workdir)
        except UserError:
            raise
        except Exception as error:  # whatever Orbax, its storage layers and numpy raise on damaged files
            raise UserError(f"{workdir} cannot be read at step {step} ({parallel.first_line(error)})") from error
    tensors = layouts.to_official(config, networks | dict(zip(copies, others, strict=True)), unused)
    write(target, _content(config, tensors, step))
    return step


def _unused(workdir: Path) -> dict[str, np.ndarray]:
    """A converted workdir's tensors that no network uses."""
    if not (workdir / UNUSED).exists():
        return {}
    arrays = npy.load_npz((workdir / UNUSED).read_bytes())
    for name, x in arrays.items():
        if x.dtype.kind not in "biuf" or x.dtype.itemsize > 8 or not x.dtype.isnative:
            raise ValueError(f"{name} of {UNUSED} is {x.dtype}")
    return arrays


def _content(config: ConfigDict, tensors: dict[str, np.ndarray], step: int) -> dict[str, Any]:
    """The file's dictionary, in the form that the release's own code reads."""
    if config.model.family == "point_cloud":
        return dict(tensors)
    if config.model.family != "style":
        return {"epoch": step, "model": tensors}
    models: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        model, rest = name.split(".", 1)
        models.setdefault(model, {})[rest] = tensor
    return {"models": models, "auxiliary": {}}


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "official.convert",
        "PATH --config RECIPE [--config.KEY=VALUE ...] [options]; or --to-torch WORKDIR OUT.pth",
        "Converts official PyTorch checkpoints to workdirs, and back.",
        recipe=True,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="official.pth; with --to-torch: WORKDIR OUT.pth")
    parser.add_argument("--to-torch", action="store_true", help="write an official checkpoint of a workdir")
    parser.add_argument("--workdir", metavar="DIR", help="the folder of the run (default: runs/NAME of the recipe)")
    parser.add_argument("--step", type=int, help="the step of the workdir")
    return parser


def main(argv: list[str]) -> None:
    """The command line. Raises `UserError`."""
    arguments, overrides = cli.split(argv[1:])
    args = _parser().parse(arguments)
    if len(args.paths) != 1 + args.to_torch:
        raise UserError("name one official.pth to convert, or with --to-torch WORKDIR OUT.pth")
    if args.to_torch:
        if args.config or args.workdir or args.step is not None or overrides:
            raise UserError("--to-torch takes WORKDIR OUT.pth alone: the config is the workdir's")
        step = to_torch(args.paths[0], files.place(args.paths[1]))
        print(f"{args.paths[1]}: step {step} of {args.paths[0]}")
        return
    config = cli.read_config(args.config, overrides)
    workdir = files.place(args.workdir or cli.default_workdir(args.config))
    step = from_torch(files.place(args.paths[0]), config, workdir, args.step)
    print(f"{workdir}: {args.paths[0]}, at step {step} of {config.train.steps}")


if __name__ == "__main__":
    cli.start(main)
