"""Reads a workdir for its report. Names files that are absent, truncated or unreadable, and reads the rest."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import config as configs
from sintrovae_jax import files, logs, provenance, schedule, workdirs
from sintrovae_jax.data import identity
from sintrovae_jax.errors import UserError, printable
from sintrovae_jax.parallel import first_line

T = TypeVar("T")
_OF_STEP = re.compile(r"(.+)_(\d{7,})")  # the name of a figure that was drawn during training


@dataclasses.dataclass
class Run:
    """A workdir's contents.

    values: config.json as {key: value}. config: the same as a config, for `schedule`; None if it is not valid. made:
    run.json. steps [N], terms {name: [N]}: the rows of metrics.csv, NaN for empty cells. pictures: {name: [(step,
    file), ...]}, the figures drawn during training, by step; figures: {name: file}, the last ones. checkpoints: their
    steps. missing: a sentence for each file that is absent or unreadable.
    """

    place: Path
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: ConfigDict | None = None
    made: dict[str, Any] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    terms: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    pictures: dict[str, list[tuple[int, Path]]] = dataclasses.field(default_factory=dict)
    figures: dict[str, Path] = dataclasses.field(default_factory=dict)
    checkpoints: list[int] = dataclasses.field(default_factory=list)
    data: identity.Identity | None = None
    missing: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return printable(self.place.name or str(self.place))

    @property
    def step(self) -> int:
        """The step that the run is known to have reached."""
        scored = self.results.get("step")
        known = [*self.checkpoints, *self.steps[-1:].astype(int), scored if isinstance(scored, int) else 0]
        return int(max(known, default=0))

    @property
    def last(self) -> int | None:
        """The step at which the run ends, from config.json; None if unknown."""
        return None if self.config is None else int(self.config.train.steps)

    @property
    def finished(self) -> bool:
        return bool(self.results) and self.last is not None and self.step >= self.last

    def phases(self) -> "Phases":
        return Phases() if self.config is None else _phases(self.config)


@dataclasses.dataclass(frozen=True)
class Phases:
    """Parts of training, in steps. levels: (start, stop, pixels per side) of networks that grow."""

    vae: int = 0
    milestones: tuple[int, ...] = ()
    levels: tuple[tuple[int, int, int], ...] = ()


def read(workdir: Path) -> Run:
    """Reads a workdir.

    Raises `UserError` if it has nothing of a run, `Unavailable` if its storage does not answer.
    """
    with files.storing(workdir):
        present = {path.name for path in workdir.iterdir()} if workdir.is_dir() else set()
    ours = {workdirs.CONFIG, workdirs.METRICS, workdirs.RESULTS, workdirs.FIGURES, workdirs.CHECKPOINTS, workdirs.RUN}
    if not present & ours:
        raise UserError(f"{workdir} is no workdir: there is nothing of a run in it; train first")
    run = Run(workdir)
    run.values = _read(run, workdirs.CONFIG, _values, {})
    run.config = _read(run, workdirs.CONFIG, _valid, None) if run.values else None
    run.made = _read(run, workdirs.RUN, provenance.read, {})
    run.results = _read(run, workdirs.RESULTS, workdirs.read_results, {})
    run.steps, run.terms = _read(run, workdirs.METRICS, _terms, (run.steps, run.terms))
    run.pictures, run.figures = _read(run, workdirs.FIGURES, _figures, ({}, {}))
    run.checkpoints = _read(run, workdirs.CHECKPOINTS, _checkpoints, [])
    run.data = _read(run, workdirs.DATA, identity.read, None)
    _name_missing(run)
    return run


def _read(run: Run, name: str, function: Callable[[Path], T], otherwise: T) -> T:
    """The result of a function that reads a file of the workdir. An unreadable file is added to `missing`."""
    try:
        return function(run.place)
    except Exception as error:  # files from others, and remote storage, may raise anything
        text = printable(first_line(error))
        run.missing.append(text if name in text else f"{name} cannot be read: {text}")
        return otherwise


def _name_missing(run):
    what = {
        workdirs.CONFIG: (run.values, "what was trained is not known"),
        workdirs.RUN: (run.made, "recipe, versions and devices are not known (runs of earlier versions have none)"),
        workdirs.METRICS: (len(run.steps), "there are no curves yet"),
        workdirs.RESULTS: (run.results, "it is written at the end of training and by --mode eval"),
        workdirs.FIGURES: (run.figures or run.pictures, "no pictures yet; --mode sample draws some"),
        workdirs.CHECKPOINTS: (run.checkpoints, "there is nothing to go on from yet"),
    }
    for name, (there, hint) in what.items():
        if not there and not any(name in sentence for sentence in run.missing):
            run.missing.append(f"{name} is absent or empty: {hint}")


def _values(workdir):
    path = workdir / workdirs.CONFIG
    if not path.exists():
        return {}
    stored = files.read_json(path)
    if not isinstance(stored, dict):
        raise ValueError("it is no object")
    return configs.flatten(stored)


def _valid(workdir):
    config = configs.read(workdir)
    if config is not None:
        configs.validate(config)
        _phases(config)  # raises if the schedule cannot be computed
    return config


def _phases(config):
    milestones = tuple(step for step in config.optimizer.milestones if step < config.train.steps)
    sizes = tuple((level.start, level.stop, level.size) for level in schedule.levels(config) if level.size)
    # The VAE objective has no phase of its own.
    vae = 0 if config.objective.name == "vae" else min(config.objective.num_vae, config.train.steps)
    return Phases(vae, milestones, sizes if len(sizes) > 1 else ())


def _terms(workdir):
    rows = logs.read(workdir)
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    terms = {name: np.array([_number(row.get(name)) for row in rows]) for name in names}
    return np.array([float(row["step"]) for row in rows]), {k: v for k, v in terms.items() if np.isfinite(v).any()}


def _number(cell: str | None) -> float:
    try:
        value = float(cell or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _figures(workdir):
    pictures: dict[str, list[tuple[int, Path]]] = {}
    figures = {}
    for path in _listed(workdir / workdirs.FIGURES):
        found = _OF_STEP.fullmatch(path.stem)
        if path.suffix != ".png" or path.name.startswith("."):
            continue
        if found:
            pictures.setdefault(found[1], []).append((int(found[2]), path))
        else:
            figures[path.stem] = path
    return {name: sorted(frames) for name, frames in pictures.items()}, figures


def _checkpoints(workdir):
    return sorted(int(path.name) for path in _listed(workdir / workdirs.CHECKPOINTS) if path.name.isdecimal())


def _listed(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir()) if folder.is_dir() else [])
