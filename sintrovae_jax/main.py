"""The command line for training and for using trained models.

python -m sintrovae_jax.main --config configs/digits.py [--workdir DIR] [--mode MODE] [--config.key=value ...]
"""

from pathlib import Path
from typing import NamedTuple

from absl import flags

from sintrovae_jax import cli, evaluators, files, logs, models, parallel, reconstruction, schedule, train_step
from sintrovae_jax import config as configs
from sintrovae_jax.errors import UserError
from sintrovae_jax.tools import plan

MODES = ("train", "eval", "sample", "reconstruct", "interpolate", "plan")

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run (default: runs/NAME of the recipe).")
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}, or one of the model's family: translate.")

_A = flags.DEFINE_string("a", "", "Start of the interpolation, image to translate: a file, or a test example's index.")
_B = flags.DEFINE_string("b", "", "End of the interpolation, image to exchange with.")
_INTERPOLATION = flags.DEFINE_string("interpolation", "linear", "linear, spherical, or a path of the model's family.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "Plan for these chips: v5e:4x8, h100:8.")
_EXPLAIN = flags.DEFINE_bool("explain", False, "In mode plan: explain the memory traffic.")
_LEVEL = flags.DEFINE_integer("level", None, "In mode plan: only this level of networks that grow.")


class Options(NamedTuple):
    """The flags besides --config, --workdir and --mode; each is for one or two modes."""

    a: str = ""
    b: str = ""
    interpolation: str = "linear"
    topology: str = ""
    level: int | None = None
    explain: bool = False


def run(mode: str, config, workdir: Path, options: Options = Options()) -> None:  # noqa: B008
    """Runs one mode on one workdir, after as many checks as possible without importing TensorFlow or writing anything.

    Raises `UserError` for the user's mistakes, and what `train` raises.
    """
    configs.validate(config)
    _check_mode(mode, config)
    _check_ends(mode, config, options)
    if mode == "plan":
        print(plan.report(plan.plan(config, options.topology, options.level, options.explain)))
        return
    if mode in ("train", "eval"):
        evaluators.check(config)
    parallel.initialize(config.distributed, config.distributed_heartbeat, notices=mode == "train")
    logs.setup(parallel.is_main())
    configs.refuse_other(config, workdir)
    if mode == "train":
        schedule.shards(config)
        train_step.from_config(config)  # raises if the networks cannot be built
        reconstruction.weights(config.objective)  # raises if the loss needs weights that are missing
        files.writable(workdir)
        from sintrovae_jax import train

        train.train(config, workdir)
    else:
        if workdir.is_dir():
            files.writable(workdir)
        from sintrovae_jax import modes

        modes.run(mode, config, workdir, modes.Ends(options.a, options.b, options.interpolation))


def _check_mode(mode: str, config) -> None:
    owners = [name for name, family in models.FAMILIES.items() if mode in family.modes]
    if mode in MODES or config.model.family in owners:
        return
    if owners:
        raise UserError(f"--mode {mode} is for model.family={' or '.join(owners)}, not {config.model.family}")
    known = (*MODES, *sorted(models.family(config.model).modes - set(MODES)))
    raise UserError(f"--mode {mode} is none of {', '.join(known)}")


def _check_ends(mode: str, config, options: Options) -> None:
    a, b, family = options.a, options.b, models.family(config.model)
    if options.interpolation not in family.model.paths:
        raise UserError(f"--interpolation {options.interpolation} is none of {', '.join(family.model.paths)}")
    of_two = ("interpolate", *family.figures_of_two)
    if (a or b) and (mode not in of_two or not (a and b)):
        raise UserError(f"--a and --b go together, with --mode {' or '.join(of_two)}")


def main(argv: list[str]) -> None:
    del argv
    name = Path(flags.FLAGS["config"].config_filename).stem
    options = Options(_A.value, _B.value, _INTERPOLATION.value, _TOPOLOGY.value, _LEVEL.value, _EXPLAIN.value)
    run(_MODE.value, cli.CONFIG.value, files.workdir(_WORKDIR.value or Path("runs") / name), options)


if __name__ == "__main__":
    cli.start(main)
