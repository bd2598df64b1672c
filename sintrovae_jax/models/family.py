"""The record that defines a network family. The family's module creates it, `models.FAMILIES` lists it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from sintrovae_jax.data.source import Source
from sintrovae_jax.models.layers import Stage
from sintrovae_jax.models.trained import Model


class Growth(NamedTuple):
    """How the networks of a family grow, from level 0 to one level for each of `model.channels`.

    size: level -> pixels per side of its images. shown: (x [B, H, W, C] of the stage's level, stage) -> the images that
    the networks get while the level is blended in.
    """

    size: Callable[[int], int]
    shown: Callable[[jax.Array, Stage], jax.Array]


class Grid(NamedTuple):
    """Images [N, H, W, C] in [0, 1], to be drawn in rows of `columns`."""

    images: np.ndarray
    columns: int


class Figure(NamedTuple):
    """A figure that only models of one family have. It is drawn after training, and by `--mode MODE`.

    draw: (model, source) -> `Grid`.
    """

    draw: Callable[[Any, Source], Grid]
    mode: str


class FigureOfTwo(NamedTuple):
    """A figure that a mode draws from the two images --a and --b. draw: (model, a, b [*shape]) -> `Grid`."""

    name: str
    draw: Callable[[Any, np.ndarray, np.ndarray], Grid]


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that is specific to one kind of network.

    build: (config.model, shape of one example, dtype or None) -> (encoder, decoder); raises `UserError` for a config
    that it cannot build. optimizer: creates the optax transform of either network, without its learning rate. model:
    the class that `load` returns. figures: {name: figure}. figures_of_two: {mode: figure}. conditional: whether its
    networks take the labels that `config.model.classes` asks for, and `build` gives them a field `classes`.
    """

    build: Callable[[ConfigDict, tuple[int, ...], jnp.dtype | None], tuple[nn.Module, nn.Module]]
    optimizer: Callable[[], optax.GradientTransformation] = optax.scale_by_adam
    growth: Growth | None = None
    model: type[Model] = Model
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    figures_of_two: Mapping[str, FigureOfTwo] = dataclasses.field(default_factory=dict)
    conditional: bool = False

    @property
    def modes(self) -> set[str]:
        """The modes that draw a figure of this family."""
        return {figure.mode for figure in self.figures.values()} | set(self.figures_of_two)


def table(top: np.ndarray, side: np.ndarray, inside: np.ndarray) -> Grid:
    """A table of images `inside` [rows, columns, *shape], with row headers `side` and column headers `top`.

    The corner is white.
    """
    first = np.concatenate([np.ones((1, *top.shape[1:])), top])[None]
    cells = np.concatenate([first, np.concatenate([side[:, None], inside], 1)])
    return Grid(cells.reshape(-1, *top.shape[1:]), len(top) + 1)
