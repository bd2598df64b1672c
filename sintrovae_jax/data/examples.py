"""Kind and shape of a source's examples, from the config alone: without the data, and without TensorFlow."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import files
from sintrovae_jax.errors import UserError

# Half of the side of the square over which each 2D density is plotted and scored (docs/method.md, "2D densities").
HALF_RANGES = {
    "gaussians8": 2.0,
    "spirals": 4.0,
    "checkerboard": 4.0,
    "rings": 4.0,
    "gaussians25": 2.5,
    "moons": 4.0,
}
# What `data.source` may be. `pipeline` builds them.
NAMES = (
    *HALF_RANGES,
    *("digits", "letters", "sprites", "shapes"),
    *("tfds:NAME[/CONFIG]", "folder:PATH", "npz:PATH", "cars3d:PATH", "kth:PATH", "clouds:PATH"),
)
PATHS = tuple(name.removesuffix(":PATH") for name in NAMES if name.endswith(":PATH"))  # kinds that are KIND:PATH


def anchored(source: str) -> str:
    """A `data.source` whose path, if it has one, means the same from every folder (`files.anchored`)."""
    kind, _, path = source.partition(":")
    return f"{kind}:{files.anchored(path)}" if kind in PATHS else source


def last_part(source: str) -> str:
    """A `data.source` without the folders that its absolute path is in; what is remote or below ~ stays."""
    kind, _, path = source.partition(":")
    return f"{kind}:{Path(path).name}" if kind in PATHS and os.path.isabs(path) else source


def same_kind(a: str, b: str) -> bool:
    """Whether two `data.source`s differ in the place of their data alone."""
    kinds = {a.partition(":")[0], b.partition(":")[0]}
    return a == b or (len(kinds) == 1 and kinds <= {*PATHS})


class Examples(NamedTuple):
    """kind: 'images', 'points' or 'clouds' (of `data.points` points). shape: of one example. dtype: as a source serves
    them (an .npz of floats: float32).

    half_range: of points, half of the side of the square over which they are plotted and scored.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: type = np.uint8
    half_range: float = 0.0


def of(data: ConfigDict) -> Examples:
    """The examples of `config.data.source`. Raises `UserError` where `data.image_size` does not fit it."""
    if data.source in HALF_RANGES:
        if data.image_size:
            raise UserError(f"data.source={data.source} is a density of points: set data.image_size=0")
        return Examples("points", (2,), np.float32, HALF_RANGES[data.source])
    if data.source == "shapes" or data.source.startswith("clouds:"):
        if data.image_size:
            raise UserError(f"data.source={data.source} is of point clouds: set data.image_size=0")
        return Examples("clouds", (data.points, 3), np.float32)
    if data.image_size < 1:
        raise UserError(f"data.source={data.source!r} needs data.image_size of 1 or more")
    return Examples("images", (data.image_size, data.image_size, data.image_channels))
