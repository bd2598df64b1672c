"""Schedules: the hyper-parameters of each step, and the level of networks that grow (paper, appendix; ALAE).

Everything is a function of the config and the step, so a resumed run has the same schedule as an uninterrupted one.
"""

import math
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import models, parallel
from sintrovae_jax.data import examples
from sintrovae_jax.models import Stage
from sintrovae_jax.objectives import Hyper


class Level(NamedTuple):
    """One level of a run, trained in the steps [start, stop)."""

    number: int | None  # None: these networks do not grow
    start: int
    grown: int  # the step at which blending in is complete
    stop: int
    batch_size: int
    size: int | None  # pixels per side of its images; None: examples are used as the source has them


def levels(config: ConfigDict) -> list[Level]:
    """The levels that a run reaches in `train.steps`, in order; a single one for networks that do not grow."""
    last, batch_size, lengths = config.train.steps, config.train.batch_size, list(config.growth.steps)
    growth = models.family_of(config.model).growth
    if growth is None:
        return [Level(None, 0, 0, last, batch_size, None)]
    top = len(config.model.channels) - 1
    if not lengths:  # batch_size equals the last of growth.batch_sizes
        return [Level(top, 0, 0, last, batch_size, growth.size(top))]
    batch_sizes = config.growth.batch_sizes or (batch_size,) * (top + 1)
    out, start = [], 0
    for number, (length, size) in enumerate(zip(lengths, batch_sizes, strict=True)):
        stop = last if number == top else min(start + length, last)
        grown = start + length // 2 if number else start
        out.append(Level(number, start, grown, stop, size, growth.size(number)))
        start += length
    return [level for level in out if level.start < last]


def shards(config: ConfigDict) -> list[parallel.Shard]:
    """How each level's batches are split over devices. Raises `UserError` if one does not divide."""
    key = "growth.batch_sizes" if config.growth.batch_sizes else "train.batch_size"
    return [parallel.shard(level.batch_size, key) for level in levels(config)]


def level_at(config: ConfigDict, step: int) -> Level:
    """The level at which a state that has taken `step` steps was last trained."""
    return [level for level in levels(config) if level.start < max(step, 1)][-1]


def stage_at(config: ConfigDict, step: int) -> Stage | None:
    """How far the networks of a state that has taken `step` steps have grown; None if they do not grow."""
    level = level_at(config, step)
    return None if level.number is None else Stage(level.number, float(blend(level, max(step - 1, 0))))


def blend(level: Level, steps: int | np.ndarray) -> np.ndarray:
    """How much of a level is blended in at its steps: ½ - ½·cos(πt) until it is grown, 1 from then on. float32."""
    t = np.clip((np.asarray(steps) - level.start) / max(level.grown - level.start, 1), 0, 1)
    return np.where(np.asarray(steps) < level.grown, 0.5 - 0.5 * np.cos(np.pi * t), 1).astype(np.float32)


def hypers_at(config: ConfigDict, steps: np.ndarray) -> Hyper:
    """The hyper-parameters of the given steps, each a float32 array of their shape."""
    o, size = config.objective, math.prod(examples.of(config.data).shape)
    passed = sum((steps >= milestone).astype(np.int32) for milestone in config.optimizer.milestones)
    values = {name: o[name] for name in Hyper._fields if name in o} | {"ema": config.train.ema}
    values |= {"scale": 1 / size if o.scale is None else o.scale, "learning_rate": config.optimizer.learning_rate}
    values |= _by_level(config, steps)
    values["learning_rate"] *= config.optimizer.decay**passed
    return Hyper(**{name: np.broadcast_to(np.float32(value), steps.shape) for name, value in values.items()})


def _by_level(config: ConfigDict, steps: np.ndarray) -> dict[str, np.ndarray]:
    """The hyper-parameters that change with the level, at the given steps."""
    if models.family_of(config.model).growth is None:
        return {"blend": np.ones(steps.shape, np.float32)}
    schedule, growth = levels(config), config.growth
    index = np.searchsorted([level.start for level in schedule], steps, side="right") - 1
    numbers = np.array([level.number for level in schedule])[index]
    out = {"blend": np.select([index == i for i in range(len(schedule))], [blend(level, steps) for level in schedule])}
    for name, values in (("learning_rate", growth.learning_rates), ("beta_neg", growth.beta_neg)):
        if values:
            out[name] = np.array(values, np.float32)[numbers]
    if growth.ema_images:
        out["ema"] = 0.5 ** (np.array([level.batch_size for level in schedule])[index] / growth.ema_images)
    return out
