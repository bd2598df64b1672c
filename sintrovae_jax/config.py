"""Configs on their way in and out: reading recipes, checking values, comparing with a workdir's."""

import difflib
import importlib.util
import inspect
import json
import math
import numbers
import sys
from pathlib import Path

from ml_collections import ConfigDict

from sintrovae_jax import files, models, objectives, parallel, perceptual
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError

# Keys that may change between two commands on one workdir: they do not touch the parameters that training reaches.
FREE = ("distributed", "log.", "eval.", "checkpoint.", "train.steps", "data.dir", "data.download", "objective.vgg")

# Keys that came after the first workdirs were written, and what these ran with.
_ADDED = {
    "distributed_heartbeat": parallel.HEARTBEAT,
    "objective": {"vgg": ""},
    "model": {"class_dim": 0, "kernel": 7, "hidden": 256},
    "growth": {"steps": [], "batch_sizes": [], "learning_rates": [], "beta_neg": [], "ema_images": 0.0},
    "eval": {
        "truncation": 1.0,
        "features": "inception",
        "inception": "",
        "reference": "train",
        "num_real": 50_000,
        "cache": "~/.cache/sintrovae_jax",
        "kid_subsets": 100,
        "kid_subset_size": 1000,
        "neighbours": 3,
        "num_scored": 1000,
        "importance_samples": 1000,
        "observation_std": None,
        "ood_source": "",
        "bootstrap": 1000,
    },
}


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
    """The config that `get_config()` of the recipe PATH, or `get_config(ARGUMENT)` of PATH:ARGUMENT, returns.

    Raises `UserError` if the file is not there, is no recipe, or does not know the argument.
    """
    path, *argument = path.split(":", 1)
    file = Path(path)
    if not file.is_file():
        known = sorted(p.stem for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.stem, known, n=1)
        hint = f"; did you mean {file.parent / near[0]}.py?" if near else ""
        raise UserError(f"no such config file: {path}{hint}")
    make_importable(file)
    spec = importlib.util.spec_from_file_location("recipe", file)
    if spec is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        inspect.signature(module.get_config).bind(*argument)
    except (AttributeError, TypeError):
        how = f"takes {argument[0]!r}" if argument else "works without arguments"
        raise UserError(f"{path} is no recipe: it has no get_config() that {how}") from None
    try:
        return module.get_config(*argument)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


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


_CHOICES = {
    "objective.name": tuple(objectives.OBJECTIVES),
    "objective.reconstruction": (*objectives.RECONSTRUCTION_ERRORS, "perceptual"),
    "model.output": ("linear", "sigmoid"),
    "checkpoint.best_mode": ("min", "max"),
    "data.image_channels": (1, 3),
    "eval.batch_norm": ("running", "standing"),
    "eval.reference": ("train", "test"),
}
_AT_LEAST_1 = (
    *("model.z_dim", "model.hidden", "train.steps", "train.batch_size", "train.substeps"),
    *("checkpoint.every", "checkpoint.keep", "log.every", "eval.num_samples", "eval.batch_size"),
    *("eval.standing_batches", "eval.num_real", "eval.kid_subsets", "eval.neighbours", "eval.num_scored"),
    *("eval.importance_samples", "eval.bootstrap", "data.shuffle_buffer"),
)
_AT_LEAST_0 = (
    *(
        "seed",
        "model.class_dim",
        "data.image_size",
        "data.translate",
        "eval.every",
        "log.figures_every",
        "optimizer.decay",
    ),
    *(f"objective.{name}" for name in ("beta_rec", "beta_kl", "beta_neg", "gamma", "gamma_r", "intro_alpha", "margin")),
    *("objective.num_vae", "objective.target_period", "growth.ema_images"),
)
_ABOVE_0 = (
    *("data.memory_gib", "objective.alpha", "objective.prior_std", "objective.scale", "optimizer.learning_rate"),
    "eval.observation_std",
)
_DISPATCHES = (
    *("train.steps", "objective.num_vae"),
    *("log.every", "log.figures_every", "checkpoint.every", "eval.every"),
)


def _is_colour(value) -> bool:
    return len(value) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in value)


def validate(config: ConfigDict) -> None:
    """Raises `UserError` for the first value that cannot work. Cheap: imports no data, builds no network."""
    values = flatten(config)
    for key, value in values.items():
        for v in value if isinstance(value, list) else [value]:
            if isinstance(v, numbers.Real) and not math.isfinite(v):
                raise UserError(f"{key}={v} is not a finite number")
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise UserError(f"{key}={values[key]!r} is none of {', '.join(map(str, choices))}")
    for keys, fits, what in (
        (_AT_LEAST_1, lambda v: v >= 1, "at least 1"),
        (_AT_LEAST_0, lambda v: v >= 0, "at least 0"),
        (_ABOVE_0, lambda v: v is None or v > 0, "above 0"),
        (("eval.kid_subset_size",), lambda v: v >= 2, "at least 2"),
        (("distributed_heartbeat",), lambda v: v >= 10, "at least 10"),
        (("data.hue", "data.test_fraction"), lambda v: 0 <= v <= 0.5, "from 0 to 0.5"),
        (("eval.truncation",), lambda v: 0 <= v <= 1, "from 0 to 1"),
        (("train.ema",), lambda v: 0 <= v < 1, "at least 0 and below 1"),
        (("data.background",), _is_colour, "red, green and blue of 0 to 255, as in '(255,255,255)'"),
    ):
        for key in keys:
            if not fits(values[key]):
                raise UserError(f"{key}={values[key]} must be {what}")
    for key, kind, low in (
        ("model.channels", int, 1),
        ("optimizer.milestones", int, 1),
        ("growth.steps", int, 1),
        ("growth.batch_sizes", int, 1),
        ("growth.learning_rates", numbers.Real, 0),
        ("growth.beta_neg", numbers.Real, 0),
        ("objective.kl_weights", numbers.Real, 0),
    ):
        if not all(isinstance(v, kind) and v >= low for v in values[key]):
            name = "whole numbers" if kind is int else "numbers"
            raise UserError(f"{key}={values[key]} must be {name} of at least {low}, as in '({low},)', or '()' for none")
    _check_together(config, values)


def _check_together(config, values):
    if config.objective.reconstruction == "bce" and config.model.output != "sigmoid":
        raise UserError("objective.reconstruction=bce needs probabilities: set model.output=sigmoid")
    if config.objective.reconstruction == "perceptual" and config.data.image_size < perceptual.SMALLEST:
        raise UserError(
            f"objective.reconstruction=perceptual needs images of {perceptual.SMALLEST} pixels or more: "
            f"data.image_size={config.data.image_size}"
        )
    if config.objective.target_period and config.objective.name != "soft_intro":
        raise UserError("objective.target_period is the bootstrap variant of objective.name=soft_intro: set it to 0")
    images = examples.of(config.data).kind == "images"
    if not images and (config.data.translate or config.data.hue or config.data.flip):
        raise UserError("data.translate, data.hue and data.flip are for images: set them to 0 for points")
    if config.data.hue and config.data.image_channels != 3:
        raise UserError("data.hue turns colours: it needs data.image_channels=3")
    _check_growth(config, values)
    weights = len(config.objective.kl_weights)
    if weights not in (0, config.model.z_dim):
        raise UserError(f"objective.kl_weights has {weights} values for model.z_dim={config.model.z_dim}")
    for key, lengths in [(key, (values[key],)) for key in _DISPATCHES] + [("growth.steps", config.growth.steps)]:
        if any(length % config.train.substeps for length in lengths):
            raise UserError(
                f"{key}={values[key]} is not a multiple of train.substeps={config.train.substeps}, "
                "the steps of one dispatch"
            )


# The keys that a list of `growth` replaces. They are the last level's too, so that overriding one is never ignored.
_LAST_LEVEL = {
    "batch_sizes": "train.batch_size",
    "learning_rates": "optimizer.learning_rate",
    "beta_neg": "objective.beta_neg",
}


def _check_growth(config, values):
    growth, grows = config.growth, models.family(config.model).growth is not None
    if not grows and any(growth.values()):
        raise UserError(f"model.family={config.model.family} does not grow: set growth.* to '()' and 0")
    for key in ("steps", *_LAST_LEVEL):
        if growth[key] and len(growth[key]) != len(config.model.channels):
            count, levels = len(growth[key]), len(config.model.channels)
            raise UserError(f"growth.{key} has {count} values for the {levels} levels of model.channels")
    for key, last in _LAST_LEVEL.items():
        if growth[key] and growth[key][-1] != values[last]:
            raise UserError(f"{last}={values[last]} is not what growth.{key} has for the last level, {growth[key][-1]}")
    if growth.ema_images and config.train.ema:
        raise UserError("train.ema and growth.ema_images both set how fast the average follows: set one of them to 0")
    if grows and config.data.translate:
        raise UserError("data.translate is in pixels, of which every level has another size: set it to 0")


FILE = "config.json"


def write(config: ConfigDict, workdir: Path) -> None:
    """Writes WORKDIR/config.json: all values used."""
    files.write_text(workdir / FILE, json.dumps(config.to_dict(), indent=2) + "\n")


def read(workdir: Path) -> ConfigDict | None:
    """The config of a workdir, or None where there is none. Raises `UserError` where it cannot be read."""
    path = workdir / FILE
    try:
        values = json.loads(path.read_text())
        for key, added in _ADDED.items():
            values[key] = added | values.get(key, {}) if isinstance(added, dict) else values.get(key, added)
        return ConfigDict(values)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
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
