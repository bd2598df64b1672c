"""Configs: reading recipes, overrides and workdirs; checks; and comparison with the config of a workdir."""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from sintrovae_jax import files, keys, models, perceptual, recipe_files, schema, workdirs
from sintrovae_jax.data import examples
from sintrovae_jax.data import identity as identities
from sintrovae_jax.data.identity import Identity
from sintrovae_jax.errors import Unavailable, UserError, listed
from sintrovae_jax.evaluators import features
from sintrovae_jax.keys import Optional
from sintrovae_jax.parallel import first_line

# Keys that may change between two commands on the same workdir: they do not affect the trained parameters.
FREE = (
    *("distributed", "log.", "eval.", "checkpoint.", "train.steps", "objective.vgg"),
    *("data.dir", "data.download", "data.accept_changes"),
)

_PATHS = ("data.dir", "objective.vgg", "eval.inception", "eval.cache")
_SOURCES = ("data.source", "eval.ood.source")
_ONCE = ("data.accept_changes",)  # for one command only: config.json does not keep them
_NAMED = 3  # the most keys that a message names
log = logging.getLogger(__name__)


def default() -> ConfigDict:
    """The config that every recipe starts from: all keys of `schema`, with their defaults."""
    config = ConfigDict()
    for name, value in schema.defaults().items():
        *path, last = name.split(".")
        section = config
        for part in path:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        section[last] = placeholder(value.type) if isinstance(value, Optional) else value
    return config


def flatten(config: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """{'train.steps': 1000, ...}, with tuples as lists, as in JSON."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            out |= {f"{key}.{k}": v for k, v in flatten(value).items()}
        else:
            out[key] = list(value) if isinstance(value, tuple | list) else value
    return out


def read_recipe(name: str) -> ConfigDict:
    """The config of a recipe (`recipe_files.find`). Its code, and any code that it names, is trusted.

    Raises `UserError` if there is no such recipe, it cannot be run, or it does not return a config with exactly the
    known keys.
    """
    recipe = recipe_files.find(name)
    config = recipe_files.call(recipe)
    if not isinstance(config, ConfigDict):
        hint = ": let it end with `return config`" if config is None else ""
        raise UserError(f"{recipe.file} is no recipe: its get_config() returns no ConfigDict{hint}")
    values = flatten(config)
    check_keys(values, f"{recipe.file}: ")
    missing = schema.keys().keys() - values.keys()
    if missing:
        raise UserError(
            f"{recipe.file} lacks {listed(sorted(missing), 3)}: let it start from sintrovae_jax.config.default()"
        )
    features.trust(config.eval.features)
    return config


def check_keys(names: Iterable[str], where: str = "") -> None:
    """Raises `UserError` for a key that does not exist, naming the nearest. where: the message's beginning."""
    known = schema.keys()
    for name in names:
        if name not in known:
            raise UserError(f"{where}unknown config key {name}; {keys.hint(name, known)}")


def override(config: ConfigDict, values: Mapping[str, str | None]) -> ConfigDict:
    """The config with values given as text, {key: text}, and its keys locked.

    A text is read as the type of the key's value. None, which only a bool may have, means True. 'None' is the default
    of a key whose default is derived (`Optional`). Code that a text names is trusted. Raises `UserError` for a key that
    does not exist, and for a text that does not fit.
    """
    check_keys(values)
    known, texts = schema.keys(), {}
    for key, text in values.items():
        if text is None and not isinstance(known[key].default, bool):
            raise UserError(f"--config.{key} needs a value: --config.{key}=VALUE")
        texts[key] = "true" if text is None else text
    none = {key for key, text in texts.items() if isinstance(known[key].default, Optional) and text == "None"}
    config.update_from_flattened_dict(dict.fromkeys(none))
    argv = ["", *(f"--config.{key}={text}" for key, text in texts.items() if key not in none)]
    given = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=given, sys_argv=argv)
        given(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if "eval.features" in texts:
        features.trust(texts["eval.features"])
    return holder.value


_DISPATCHES = (
    *("train.steps", "objective.num_vae"),
    *("log.every", "log.figures_every", "checkpoint.every", "eval.every"),
)


def _multiples(key: str, lengths: Sequence[int], substeps: int) -> str:
    """Says which lengths to give instead of these, which are not all multiples of `substeps`."""
    if len(lengths) > 1:
        return f"give {tuple(max(1, round(length / substeps)) * substeps for length in lengths)}"
    low, check = lengths[0] // substeps * substeps, schema.keys()[key].check
    return " or ".join(f"{n}" for n in (low, low + substeps) if not check or check.fits(n)).join(("give ", ""))


def validate(config: ConfigDict) -> None:
    """Raises `UserError` for the first value that cannot work. Cheap: reads no data and builds no network."""
    values = flatten(config)
    keys.check(schema.keys(), values)
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
    _check_prior(config)
    kind = examples.of(config.data).kind
    images = kind == "images"
    if not images and (config.data.translate or config.data.hue or config.data.flip):
        raise UserError(f"data.translate, data.hue and data.flip are for images: set them to 0 for {kind}")
    if config.model.augment and not images:
        raise UserError(f"model.augment is for images: set it to False for {kind}")
    _check_clouds(config, kind)
    if config.data.hue and config.data.image_channels != 3:
        raise UserError("data.hue turns colours: it needs data.image_channels=3")
    if config.model.classes and not models.family_of(config.model).conditional:
        raise UserError(f"model.family={config.model.family} takes no labels: set model.classes=0")
    if config.model.classes and not images:
        raise UserError(f"data.source={config.data.source} has no labels: set model.classes=0")
    _check_growth(config, values)
    weights = len(config.objective.kl_weights)
    if weights not in (0, config.model.z_dim):
        raise UserError(f"objective.kl_weights has {weights} values for model.z_dim={config.model.z_dim}")
    for key, lengths in [(key, (values[key],)) for key in _DISPATCHES] + [("growth.steps", config.growth.steps)]:
        if any(length % config.train.substeps for length in lengths):
            raise UserError(
                f"{key}={values[key]} is not a multiple of train.substeps={config.train.substeps}, the steps of one "
                f"dispatch: {_multiples(key, lengths, config.train.substeps)}, or another train.substeps"
            )


def _check_prior(config):
    o, learnt = config.objective, config.model.prior == "mixture"
    if learnt and o.kl_weights:
        raise UserError("objective.kl_weights are for model.prior=normal: the KL to a mixture has no single dimensions")
    if not learnt and (o.responsibility or config.optimizer.prior_learning_rate is not None):
        raise UserError("objective.responsibility and optimizer.prior_learning_rate are for model.prior=mixture")
    if o.responsibility and config.model.components == 1:
        raise UserError("objective.responsibility needs model.components of 2 or more")
    if o.responsibility and o.name == "vae":
        raise UserError("objective.responsibility is for the adversarial steps: objective.name=vae has none")


def _check_clouds(config, kind):
    if kind != "clouds" and config.data.rotate:
        raise UserError(f"data.rotate is for point clouds: set it to 0 for {kind}")
    if (kind == "clouds") != (config.objective.reconstruction == "chamfer"):
        raise UserError(
            "objective.reconstruction=chamfer is for point clouds, and for them there is no other: "
            f"it is {config.objective.reconstruction}, and data.source={config.data.source} has {kind}"
        )


# The keys that a list of `growth` replaces. They must equal the last value, so that no override is ignored.
_LAST_LEVEL = {
    "batch_sizes": "train.batch_size",
    "learning_rates": "optimizer.learning_rate",
    "beta_neg": "objective.beta_neg",
}


def _check_growth(config, values):
    growth, grows = config.growth, models.family_of(config.model).growth is not None
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
        raise UserError("data.translate is in pixels, but every level has another size: set it to 0")


def write(config: ConfigDict, workdir: Path, *, places: bool = True) -> None:
    """Writes WORKDIR/config.json: all values used, with relative paths made absolute.

    places: False for an export, so that it does not reveal folders of this machine: only the last part of an absolute
    data path stays, and other keys with absolute paths get their defaults.
    """
    stored, given, defaults = ConfigDict(config.to_dict()), flatten(config), schema.defaults()
    paths = {name: files.anchored(given[name]) for name in _PATHS}
    sources = {name: examples.anchored(given[name]) for name in _SOURCES}
    if not places:
        paths = {name: defaults[name] if os.path.isabs(path) else path for name, path in paths.items()}
        sources = {name: examples.last_part(source) for name, source in sources.items()}
    stored.update_from_flattened_dict(paths | sources | dict.fromkeys(_ONCE, False))
    files.write_text(workdir / workdirs.CONFIG, json.dumps(stored.to_dict(), indent=2) + "\n")


def read(workdir: Path) -> ConfigDict | None:
    """The config of a workdir, or None if it has none.

    Keys that config.json lacks (because a later version, or an evaluator that was added since, introduced them) have
    their defaults. Keys that this version does not know are ignored with a warning if they are `FREE`. Raises
    `UserError` for other unknown keys, and if config.json cannot be read; `Unavailable` if remote storage does not
    answer.
    """
    path = workdir / workdirs.CONFIG
    try:
        stored = flatten(files.read_json(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # the libraries for remote files raise all kinds
        if files.is_remote(path) and not isinstance(error, ValueError | AttributeError | RecursionError):
            raise Unavailable(f"{path} cannot be read: {first_line(error)}") from error
        raise UserError(f"{path} cannot be read ({first_line(error)}); restore it, or use another --workdir") from None
    if "data.source" not in stored:
        raise UserError(f"{path} is no config of this project (it has no data.source)")
    config, defaults = default(), flatten(default())
    unknown = sorted(stored.keys() - defaults.keys())
    if strange := [name for name in unknown if not name.startswith(FREE)]:
        raise UserError(
            f"{path} has {listed(strange, _NAMED)}, which nothing here knows: it needs a later version, or the module "
            "that adds this"
        )
    if unknown:
        log.warning("%s has %s, which nothing here knows: ignored", path, listed(unknown, _NAMED))
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items() if name in defaults}
    known = schema.keys()
    if missing := [name for name, v in values.items() if v is None and not isinstance(known[name].default, Optional)]:
        raise UserError(f"{path} is no config of this project ({missing[0]} has no value)")
    try:
        config.update_from_flattened_dict(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is no config of this project ({first_line(error)})") from None
    return config


def of_workdir(workdir: Path, anew: bool = False) -> ConfigDict:
    """The config of a workdir. anew: for a new command, to which the last command's `distributed` does not apply.

    Raises `UserError` if there is none or it cannot be read; `Unavailable` if its storage does not answer.
    """
    try:
        config = read(workdir)
        problem = "" if config is not None else _without_config(workdir)
    except (UserError, Unavailable):
        raise
    except Exception as error:  # whatever the libraries for remote files raise
        raise Unavailable(f"{workdir} cannot be reached ({first_line(error)})") from error
    if config is None:
        raise UserError(problem)
    if anew:
        config.distributed = schema.defaults()["distributed"]
    return config


def _without_config(workdir: Path) -> str:
    """Says what is wrong with a workdir that has no config.json."""
    if workdirs.has_checkpoints(workdir):
        return f"{workdir} has checkpoints, but no {workdirs.CONFIG} that says what they are of: restore it"
    return f"no checkpoint in {workdir}: it is no workdir (it has no {workdirs.CONFIG}); train first, with --config"


def refuse_other(config: ConfigDict, workdir: Path) -> None:
    """Raises `UserError` if the workdir was made by another config, naming keys that differ, or has only checkpoints.

    The data's location may differ: `refuse_other_data` compares their content.
    """
    old = read(workdir)
    if old is None:
        if workdirs.has_checkpoints(workdir):
            raise UserError(f"{_without_config(workdir)}, or use another --workdir")
        return
    stored, given = flatten(old), flatten(config)
    differ = sorted(k for k in stored.keys() | given.keys() if stored.get(k) != given.get(k) and not k.startswith(FREE))
    if "data.source" in differ and examples.same_kind(stored["data.source"], given["data.source"]):
        differ.remove("data.source")
    if differ:
        changes = listed([f"{k} ({stored.get(k)} there, {given.get(k)} here)" for k in differ], _NAMED)
        raise UserError(
            f"{workdir} was made by another config: {changes}; give the same values, or --workdir without --config "
            "for its own, or another --workdir"
        )


def refuse_other_data(config: ConfigDict, identity: Identity | None, workdir: Path) -> None:
    """Raises `UserError` if the config's data are not the data that the workdir was trained on.

    Does not raise if `data.accept_changes` is set, or the workdir has no checkpoint. The data's location does not
    matter.
    """
    if identity is None or not workdirs.has_checkpoints(workdir):
        return
    problem = _other_data(config.data.source, identity, workdir)
    if problem and not config.data.accept_changes:
        raise UserError(f"{problem}: restore the data, or go on with --config.data.accept_changes=True")
    if problem:
        log.warning("%s: accepted", problem)


def _other_data(place: str, identity: Identity, workdir: Path) -> str:
    """Says how the data differ from the workdir's data; '' if they do not."""
    old = identities.read(workdir)
    if old is not None:
        changes = identities.difference(old, identity)
        return changes and f"{place} is not what {workdir} was trained on ({changes})"
    before = of_workdir(workdir).data.source
    if examples.anchored(place) == examples.anchored(before):
        return ""
    return f"{workdir} has no {workdirs.DATA}, so that {place} cannot be compared with {before}"
