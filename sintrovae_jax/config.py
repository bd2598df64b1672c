"""Configs on their way in and out: reading recipes, checking values, comparing with a workdir's."""

import difflib
import importlib.util
import json
import math
import numbers
import sys
from pathlib import Path

from ml_collections import ConfigDict

from sintrovae_jax import files, objectives, step
from sintrovae_jax.errors import UserError

# Keys that may change between two commands on one workdir: they do not touch the parameters that training reaches.
FREE = ("distributed", "log.", "eval.", "checkpoint.", "train.steps")


def flatten(config) -> dict:
    """{'train.steps': 1000, ...}, with tuples as lists, as they are in JSON."""
    out = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            out |= {f"{key}.{k}": v for k, v in flatten(value).items()}
        else:
            out[key] = list(value) if isinstance(value, tuple | list) else value
    return out


def read_recipe(path: str) -> ConfigDict:
    """The config that a recipe's `get_config()` returns. Raises `UserError` if there is no such file or function."""
    file = Path(path)
    if not file.is_file():
        known = sorted(p.stem for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.stem, known, n=1)
        hint = f"; did you mean {file.parent / near[0]}.py?" if near else ""
        raise UserError(f"no such config file: {path}{hint}")
    make_importable(file)
    spec = importlib.util.spec_from_file_location("recipe", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} defines no get_config()")
    return module.get_config()


def make_importable(file: Path) -> None:
    """Recipes say `from configs import common`: puts the parent of their folder on the path."""
    root = str(file.resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)


def check_keys(config: ConfigDict, keys: list[str]) -> None:
    """Raises `UserError` for a key the recipe does not have, naming the nearest one."""
    known = list(flatten(config))
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UserError(f"unknown config key {key}; the nearest is {near[0]}")


def validate(config: ConfigDict) -> None:
    """Raises `UserError` for the first value that cannot work. Cheap: imports no data, builds no network."""
    for key, value in flatten(config).items():
        for v in value if isinstance(value, list) else [value]:
            if isinstance(v, numbers.Real) and not math.isfinite(v):
                raise UserError(f"{key}={v} is not a finite number")
    _one_of("objective.name", config.objective.name, step.TERMS)
    _one_of("objective.reconstruction", config.objective.reconstruction, objectives.RECONSTRUCTION_ERRORS)
    _one_of("model.output", config.model.output, ("linear", "sigmoid"))
    _one_of("checkpoint.best_mode", config.checkpoint.best_mode, ("min", "max"))
    if config.objective.reconstruction == "bce" and config.model.output != "sigmoid":
        raise UserError("objective.reconstruction=bce needs probabilities: set model.output=sigmoid")
    weights = len(config.objective.kl_weights)
    if weights not in (0, config.model.z_dim):
        raise UserError(f"objective.kl_weights has {weights} values for model.z_dim={config.model.z_dim}")
    _at_least(config, 0, ("seed", "objective.num_vae", "eval.every", "log.figures_every"))
    _at_least(
        config,
        1,
        (
            *("model.z_dim", "train.steps", "train.batch_size", "train.substeps"),
            *("checkpoint.every", "checkpoint.keep", "log.every", "eval.num_samples"),
        ),
    )
    positive = ("objective.alpha", "objective.prior_std", "optimizer.learning_rate")
    for key in (*positive, "objective.scale"):
        value = flatten(config)[key]
        if value is not None and value <= 0:
            raise UserError(f"{key}={value} must be above 0")
    for key in ("train.steps", "log.every", "log.figures_every", "checkpoint.every", "eval.every"):
        if flatten(config)[key] % config.train.substeps:
            raise UserError(
                f"{key}={flatten(config)[key]} is not a multiple of train.substeps={config.train.substeps}, "
                "the steps of one dispatch"
            )


def _one_of(key, value, choices):
    if value not in choices:
        raise UserError(f"{key}={value!r} is none of {', '.join(choices)}")


def _at_least(config, low, keys):
    for key in keys:
        if flatten(config)[key] < low:
            raise UserError(f"{key}={flatten(config)[key]} must be at least {low}")


def write(config: ConfigDict, workdir: Path) -> None:
    """Writes WORKDIR/config.json: all values used."""
    files.write_text(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def read(workdir: Path) -> ConfigDict | None:
    """The config of a workdir, or None where there is none. Raises `UserError` where it cannot be read."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        return ConfigDict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or use another --workdir") from None


def refuse_other(config: ConfigDict, workdir: Path) -> None:
    """Raises `UserError`, listing the keys that differ, if the workdir was made by another config."""
    old = read(workdir)
    if old is None:
        return
    old, new = flatten(old), flatten(config)
    differ = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and not k.startswith(FREE))
    if differ:
        what = ", ".join(f"{k} ({old.get(k)} there, {new.get(k)} here)" for k in differ)
        raise UserError(f"{workdir} was made by another config: {what}; give the same values or another --workdir")
