"""Using a trained model: `load(path)`, then encode, decode, sample, reconstruct, interpolate.

Needs neither TensorFlow nor a config file: the workdir's config.json says what to build.
"""

import contextlib
import logging
import numbers
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import (
    checkpoint,
    dispatch,
    files,
    models,
    parallel,
    schedule,
    seeds,
    standing,
    train_state,
    workdirs,
)
from sintrovae_jax import config as configs
from sintrovae_jax.arrays import Variables
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import features
from sintrovae_jax.models import Model

log = logging.getLogger(__name__)
PRETRAINED = Path(__file__).with_name("pretrained")  # models that come with the package


def from_state(config: ConfigDict, networks: train_state.Networks, host_state: train_state.TrainState) -> Model:
    """The model of a training state without a device axis (`parallel.unreplicate`)."""
    return _model(config, int(host_state.step), networks, host_state.best_variables)


def _model(config, step, networks, variables):
    kind = models.family_of(config.model).model
    return kind(config, step, networks.encoder, networks.decoder, variables, schedule.stage_at(config, step))


@seeds.pinned()
def load(
    path: str | Path,
    step: int | str | None = None,
    *,
    ema: bool = True,
    batch_norm: str | None = None,
    trust: bool = False,
) -> Model:
    """Rebuilds a trained model from its workdir alone, on any devices.

    path: a workdir, its `checkpoints` folder, or one checkpoint (`checkpoints/STEP`), local or remote (gs://…, which
    needs TensorFlow or gcsfs); 'pretrained:NAME', a model that comes with the package; or 'hf:USER/NAME', optionally
    with '@REVISION', a model on the Hugging Face Hub (which needs the extra `hub`). step: the step of a checkpoint;
    'best': the best stored checkpoint by the metric `config.checkpoint.best`; 'latest' or None: the newest. ema: True:
    the averaged networks if the run has them; False: the networks as trained. batch_norm: BatchNorm's averages:
    'running'; 'standing', which evaluations keep in the workdir; None: those that its config names (`eval.batch_norm`),
    or running averages if the workdir keeps no standing ones of these networks. trust: lets evaluations run the code
    that the workdir's config names (`eval.features=MODULE:FUNCTION`); loading runs none. Raises `UserError` if there is
    no such workdir or checkpoint, if it cannot be read, or if it holds another model than its config describes;
    `Unavailable` if remote storage or the Hub does not answer.
    """
    if batch_norm not in (None, "running", "standing"):
        raise UserError(f"batch_norm={batch_norm!r} is none of running, standing")
    workdir, step = locate(path, step)
    config = config_of(workdir)
    if trust:
        features.trust(config.eval.features)
    networks, abstract = described(config, workdir)
    for last in (False, False, True):
        try:
            resolved, variables = _read(config, workdir, step, abstract, ema)
            return _averaged(_model(config, resolved, networks, variables), workdir, batch_norm)
        except UserError:
            # A run that is still training may remove an old checkpoint while it is being read.
            if last or isinstance(step, int):
                raise
    raise AssertionError


def _averaged(model: Model, workdir: Path, batch_norm: str | None) -> Model:
    """The model, which has running averages, with the averages that are asked for (`load`)."""
    wanted = batch_norm or model.config.eval.batch_norm
    kept = standing.read(model, workdir) if wanted == "standing" and standing.has_batch_norm(model) else None
    if batch_norm == "standing" and kept is None:
        raise UserError(
            f"{workdir} keeps no standing averages of these networks at step {model.step}: run --mode eval with "
            "--config.eval.batch_norm=standing"
        )
    return kept or model


def locate(path: str | Path, step: int | str | None = None) -> tuple[Path, int | str | None]:
    """Splits a path of `load` into the workdir and the step. A model on the Hub is downloaded.

    Raises `UserError` for an impossible path or step, and the errors of `hub.fetch`.
    """
    step = None if step == "latest" else step
    if step is not None and step != "best":
        if not isinstance(step, numbers.Integral):
            raise UserError(f"a step is a whole number, 'best' or 'latest', not {step!r}")
        step = int(step)
    kind, _, name = str(path).partition("pretrained:")
    if name and not kind:
        return _pretrained(name), step
    if str(path).startswith(files.HUB):
        from sintrovae_jax import hub

        return hub.fetch(str(path)), step
    place = files.place(path)
    files.refuse_other_encodings(place)
    if place.parent.name == workdirs.CHECKPOINTS and place.name.isdecimal() and not (place / workdirs.CONFIG).exists():
        allowed: tuple[int | str | None, ...] = (None, int(place.name))
        if step not in allowed:
            raise UserError(f"{path} is step {int(place.name)}, not {step}")
        return place.parent.parent, int(place.name)
    inside = place.name == workdirs.CHECKPOINTS and not (place / workdirs.CONFIG).exists()
    return (place.parent if inside else place), step


def _pretrained(name):
    folder = files.place(PRETRAINED)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if name not in names:
        raise UserError(f"pretrained:{name} does not come with the package; there are {', '.join(names)}")
    return folder / name


def config_of(workdir: Path) -> ConfigDict:
    """The config of a workdir. Raises `UserError` if it is missing or cannot be used."""
    config = configs.of_workdir(workdir)
    try:
        configs.validate(config)
    except UserError as error:
        raise UserError(f"{workdir / workdirs.CONFIG}: {error}") from None
    return config


@contextlib.contextmanager
def opened(
    config: ConfigDict, workdir: Path, step: int | str | None = None
) -> Iterator[tuple[checkpoint.Checkpoints, int]]:
    """Yields the checkpoints of a workdir, read-only, and the step that `load` would choose.

    Raises `UserError` if there is none.
    """
    best = config.checkpoint.best if step == "best" else ""
    try:
        if not (workdir / workdirs.CHECKPOINTS).is_dir():
            raise UserError(f"no checkpoint in {workdir}; train first, or name another workdir")
        mode = config.checkpoint.best_mode
        checkpoints = checkpoint.Checkpoints(workdir, best=best, best_mode=mode, read_only=True)
        resolved = _chosen(config, checkpoints, workdir, step)
    except UserError:
        raise
    except Exception as error:  # whatever Orbax and its storage layers raise on damaged files
        raise UserError(f"the checkpoints of {workdir} cannot be read ({parallel.first_line(error)})") from error
    with contextlib.closing(checkpoints):
        yield checkpoints, resolved


def _chosen(config: ConfigDict, checkpoints: checkpoint.Checkpoints, workdir: Path, step: int | str | None) -> int:
    """The step to load. Raises `UserError` if it has no checkpoint."""
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"no checkpoint in {workdir}; train first, or name another workdir")
    available = f"there are {', '.join(map(str, steps))}"
    if step is None:
        return steps[-1]
    if step == "best":
        best = checkpoints.best_step()
        if best is None:
            metric = config.checkpoint.best
            why = f"none was evaluated for {metric}" if metric else "its config has no checkpoint.best"
            raise UserError(f"no best checkpoint in {workdir}: {why}; {available}")
        return best
    if step not in steps:
        raise UserError(f"no checkpoint of step {step} in {workdir}; {available}")
    return step


def described(config: ConfigDict, workdir: Path) -> tuple[train_state.Networks, train_state.TrainState]:
    """The networks of a workdir's config, and the shapes of their state. Raises `UserError` if they cannot be built."""
    try:
        networks, _, create = dispatch.from_config(config)
        return networks, jax.eval_shape(create)
    except UserError as error:
        raise UserError(f"{workdir / workdirs.CONFIG}: {error}") from None
    except (TypeError, ValueError, AttributeError, OverflowError, NotImplementedError) as error:  # from jax and Flax
        reason = parallel.first_line(error)
        raise UserError(f"{workdir / workdirs.CONFIG} describes no networks that can be built ({reason})") from error


def _read(
    config: ConfigDict, workdir: Path, step: int | str | None, abstract: train_state.TrainState, ema: bool
) -> tuple[int, Variables]:
    """The step to load, and its variables as numpy arrays."""
    with opened(config, workdir, step) as (checkpoints, resolved):
        log.info("reading checkpoint %d of %s", resolved, workdir)
        try:
            variables = checkpoints.read(resolved, abstract, ema)
        except UserError:
            raise
        except Exception as error:  # whatever Orbax and its storage layers raise on damaged files
            others = [s for s in checkpoints.steps() if s != resolved]
            hint = f"; there is also step {', '.join(map(str, others))}" if others else ""
            reason = parallel.first_line(error)
            raise UserError(f"checkpoint {resolved} of {workdir} cannot be read ({reason}){hint}") from error
    return resolved, jax.tree.map(np.asarray, variables)
