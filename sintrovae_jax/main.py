"""The command line of training and of using what was trained.

python -m sintrovae_jax.main --config configs/digits.py [--workdir DIR] [--mode MODE] [--config.key=value ...]
"""

from pathlib import Path

from absl import flags

from sintrovae_jax import cli, evaluators, files, inference, logs, parallel, reconstruction, schedule, train_step
from sintrovae_jax import config as configs
from sintrovae_jax.errors import UserError
from sintrovae_jax.tools import plan

MODES = ("train", "eval", "sample", "reconstruct", "interpolate", "translate", "plan")

_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives (default: runs/NAME of the recipe).")
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")

_A = flags.DEFINE_string("a", "", "Interpolate from here, translate this: an image file, or a test example's index.")
_B = flags.DEFINE_string("b", "", "Interpolate to here, exchange with this.")
_INTERPOLATION = flags.DEFINE_string("interpolation", "linear", f"One of {', '.join(inference.PATHS)}.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "Plan for these chips: v5e:4x8, h100:8.")
_EXPLAIN = flags.DEFINE_bool("explain", False, "With a plan, say what moves its bytes.")
_LEVEL = flags.DEFINE_integer("level", None, "Plan this level only, of networks that grow.")


def run(mode: str, config, workdir: Path) -> None:
    """Runs one mode on one workdir. Checks all it can before it imports TensorFlow or writes anything.

    Raises `UserError` for what the user got wrong, and what `train` raises.
    """
    if mode not in MODES:
        raise UserError(f"--mode {mode} is none of {', '.join(MODES)}")
    ends = _ends(mode)
    configs.validate(config)
    if mode == "translate" and config.model.family != "two_encoder":
        raise UserError(f"--mode translate is for model.family=two_encoder, not {config.model.family}")
    if mode == "plan":
        print(plan.report(plan.plan(config, _TOPOLOGY.value, _LEVEL.value, _EXPLAIN.value)))
        return
    if mode in ("train", "eval"):
        evaluators.check(config)
    parallel.initialize(config.distributed, config.distributed_heartbeat, notices=mode == "train")
    logs.setup(parallel.is_main())
    configs.refuse_other(config, workdir)
    if mode == "train":
        schedule.shards(config)
        train_step.from_config(config)  # whether there is such a network
        reconstruction.weights(config.objective)  # whether its weights are there, if it has some
        files.writable(workdir)
        from sintrovae_jax import train

        train.train(config, workdir)
    else:
        if workdir.is_dir():
            files.writable(workdir)
        from sintrovae_jax import modes

        modes.run(mode, config, workdir, modes.Ends(*ends))


def _ends(mode: str) -> tuple[str, str, str]:
    """Between what, and how, to interpolate, or what to translate (`modes.Ends`)."""
    a, b, path = _A.value, _B.value, _INTERPOLATION.value
    if path not in inference.PATHS:
        raise UserError(f"--interpolation {path} is none of {', '.join(inference.PATHS)}")
    if (a or b) and (mode not in ("interpolate", "translate") or not (a and b)):
        raise UserError("--a and --b go together, with --mode interpolate or translate")
    return a, b, path


def main(argv: list[str]) -> None:
    del argv
    name = Path(flags.FLAGS["config"].config_filename).stem
    run(_MODE.value, cli.CONFIG.value, files.workdir(_WORKDIR.value or Path("runs") / name))


if __name__ == "__main__":
    cli.start(main)
