"""The command line for training and for using trained models.

python -m sintrovae_jax.main --config configs/digits.py [--workdir DIR] [--mode MODE] [--config.key=value ...]
python -m sintrovae_jax.main --workdir DIR [--mode MODE] [--config.key=value ...]
"""

import argparse
import logging
import re
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from sintrovae_jax import (
    cli,
    compile_cache,
    dispatch,
    evaluators,
    extras,
    files,
    logs,
    models,
    parallel,
    provenance,
    reconstruction,
    schedule,
    seeds,
    workdirs,
)
from sintrovae_jax import config as configs
from sintrovae_jax.errors import UserError
from sintrovae_jax.tools import plan

log = logging.getLogger("sintrovae_jax.main")  # also if __name__ is "__main__"
_USAGE = "[--config RECIPE] [--workdir DIR] [--mode MODE] [--config.KEY=VALUE ...]"
MODES = ("train", "eval", "sample", "reconstruct", "interpolate", "report", "plan")


class Options(NamedTuple):
    """The flags besides --config, --workdir and --mode; each is for one or two modes."""

    a: str = ""
    b: str = ""
    interpolation: str = "linear"
    topology: str = ""
    level: int | None = None
    explain: bool = False
    step: int | str | None = None
    classes: tuple[int, ...] = ()
    recipe: provenance.Recipe | None = None  # train: the recipe of --config


@seeds.pinned()
def run(mode: str, config: ConfigDict, workdir: Path, options: Options = Options()) -> None:  # noqa: B008
    """Runs one mode on one workdir, after as many checks as possible without importing TensorFlow or writing anything.

    `report` needs only the workdir, which may have no config. Raises `UserError` for the user's mistakes, and the
    errors of `train`.
    """
    if mode == "report":
        _check_options(mode, options)
        _report(workdir)
        return
    configs.validate(config)
    _check_mode(mode, config)
    _check_options(mode, options)
    _check_ends(mode, config, options)
    _check_classes(mode, config, options)
    if mode == "plan":
        logs.setup(main=True)
        print(plan.report(plan.plan(config, options.topology, options.level, options.explain)))
        return
    if mode in ("train", "eval"):
        evaluators.check(config)
    extras.need_train()
    if mode == "train" and config.log.wandb:
        extras.need_wandb()
    parallel.initialize(config.distributed, config.distributed_heartbeat, notices=mode == "train")
    logs.setup(parallel.is_main())
    configs.refuse_other(config, workdir)
    if mode == "train":
        schedule.shards(config)
        dispatch.from_config(config)  # raises if the networks cannot be built
        reconstruction.weights(config.objective)  # raises if the loss needs weights that are missing
        files.writable(workdir)
        from sintrovae_jax import train

        train.train(config, workdir, options.recipe)
    else:
        if workdir.is_dir():
            files.writable(workdir)
        from sintrovae_jax import modes

        ends = modes.Ends(options.a, options.b, options.interpolation, options.classes)
        modes.run(mode, config, workdir, ends, options.step)


def _report(workdir: Path) -> None:
    """Writes the report of a workdir. Uses no device, so that it can be written while a run trains."""
    extras.need_report()
    logs.setup(main=True)
    from sintrovae_jax.reports import report

    log.info("wrote %s", report.write(workdir))


def _check_mode(mode: str, config: ConfigDict) -> None:
    owners = [name for name, family in models.FAMILIES.items() if mode in family.modes]
    if mode in MODES or config.model.family in owners:
        return
    if owners:
        raise UserError(f"--mode {mode} is for model.family={' or '.join(owners)}, not {config.model.family}")
    known = (*MODES, *sorted(models.family_of(config.model).modes - set(MODES)))
    raise UserError(f"--mode {mode} is none of {', '.join(known)}")


def _check_options(mode: str, options: Options) -> None:
    """Raises `UserError` for an option of another mode, which would be ignored."""
    modes = {"interpolation": "interpolate", "topology": "plan", "level": "plan", "explain": "plan"}
    for name, needed in modes.items():
        if getattr(options, name) != getattr(Options(), name) and mode != needed:
            raise UserError(f"--{name} is for --mode {needed}, not {mode}")
    if options.step is not None and mode in ("train", "plan"):
        raise UserError(f"--step is for modes that read a checkpoint, not --mode {mode}")


def _check_ends(mode: str, config: ConfigDict, options: Options) -> None:
    a, b, family = options.a, options.b, models.family_of(config.model)
    if options.interpolation not in family.model.paths:
        raise UserError(f"--interpolation {options.interpolation} is none of {', '.join(family.model.paths)}")
    of_two = ("interpolate", *family.figures_of_two)
    if (a or b) and (mode not in of_two or not (a and b)):
        raise UserError(f"--a and --b go together, with --mode {' or '.join(of_two)}")


def _check_classes(mode: str, config: ConfigDict, options: Options) -> None:
    given, classes = options.classes, config.model.classes
    if not given:
        return
    if mode not in ("sample", "interpolate") or (mode == "interpolate" and not options.a):
        raise UserError("--class is for --mode sample, or with --a and --b for --mode interpolate")
    if not classes:
        raise UserError("--class is for conditional models: this one takes no labels (model.classes=0)")
    if not all(label < classes for label in given):
        raise UserError(f"--class {','.join(map(str, given))}: labels are from 0 to {classes - 1}")
    if mode == "sample" and len(set(given)) < len(given):
        raise UserError(f"--class {','.join(map(str, given))}: a label is given twice")
    if mode == "sample" and len(given) > config.eval.num_samples:
        raise UserError(f"--class gives {len(given)} labels for eval.num_samples={config.eval.num_samples}")
    if mode == "interpolate" and len(given) != 2:
        raise UserError("--mode interpolate needs the labels of both --a and --b: --class A,B")


def _classes(text: str | None) -> tuple[int, ...]:
    """The labels of --class."""
    if text is None:
        return ()
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text, re.ASCII):
        raise UserError(f"--class {text!r} is no label, nor several: give --class 7 or --class 1,3")
    return tuple(map(int, text.split(",")))


def _parser() -> cli.Parser:
    parser = cli.Parser("main", _USAGE, "Trains a recipe, or uses a model that it has trained.", recipe=True)
    parser.add_argument(
        "--workdir", metavar="DIR", help="the folder of the run, which keeps its config (default: runs/NAME)"
    )
    own = sorted({mode for family in models.FAMILIES.values() for mode in family.modes} - set(MODES))
    parser.add_argument("--mode", default="train", help=f"{', '.join(MODES)}; some families also {', '.join(own)}")
    parser.add_argument("--step", help="for modes that read a checkpoint: its step, best or latest (the default)")
    parser.add_argument(
        "--compilation-cache",
        metavar="DIR",
        default="",
        help=f"folder for compiled programs (default: below ~/.cache); {compile_cache.OFF}: keep none",
    )
    parser.add_argument("--a", default="", help="interpolate, translate: an image file, or the index of a test example")
    parser.add_argument("--b", default="", help="the other image file or index")
    parser.add_argument(
        "--interpolation",
        metavar="PATH",
        default="linear",
        help="linear or spherical; for style-based models also style",
    )
    parser.add_argument(
        "--class",
        dest="classes",
        metavar="LABELS",
        help="conditional models: labels to sample (7 or 1,3), or of --a and --b",
    )
    parser.add_argument(
        "--topology", metavar="CHIPS", default="", help="plan: the chips to plan for, such as v5e:4x8 or h100:8"
    )
    parser.add_argument("--level", type=int, help="plan: only this level of networks that grow")
    parser.add_argument("--explain", action="store_true", help="plan: explain the memory traffic")
    return parser


def _main_report(args: argparse.Namespace, overrides: dict[str, str | None], workdir: Path | None) -> None:
    """--mode report, which takes only a workdir. Raises `UserError` for options that it would ignore."""
    if overrides:
        raise UserError(f"--mode report changes nothing: it takes no --config.{next(iter(overrides))}")
    given = [n for n in ("step", "a", "b", "classes", "compilation_cache", "topology", "level") if getattr(args, n)]
    if given or args.explain or args.interpolation != Options().interpolation:
        raise UserError("--mode report takes --workdir alone")
    if workdir is None and not args.config:
        raise UserError("no workdir given: add --workdir DIR; --help lists the options")
    _report(workdir or files.place(cli.default_workdir(args.config)))


def main(argv: list[str]) -> None:
    """The command line. Raises the errors of `run`."""
    arguments, overrides = cli.split(argv[1:])
    args = _parser().parse(arguments)
    workdir = files.place(args.workdir) if args.workdir else None
    if args.mode == "report":
        _main_report(args, overrides, workdir)
        return
    config = cli.starting_config(args.config, workdir)
    recipe = provenance.Recipe(args.config, configs.flatten(config)) if args.config else None
    config = configs.override(config, overrides)
    step = None if args.step is None else workdirs.step_of(args.step)
    if args.mode != "plan":  # a plan reads the analysis of a freshly compiled program
        compile_cache.enable(args.compilation_cache)
    ends = (args.a, args.b, args.interpolation)
    options = Options(*ends, args.topology, args.level, args.explain, step, _classes(args.classes), recipe)
    run(args.mode, config, workdir or files.place(cli.default_workdir(args.config)), options)


if __name__ == "__main__":
    cli.start(main)
