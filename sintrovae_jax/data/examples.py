"""The kind and shape of a source's examples, from the config alone, without the data and without TensorFlow."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import files
from sintrovae_jax.errors import UserError

# Half the side of the square over which each 2D density is plotted and scored (docs/method.md, "2D densities").
HALF_RANGES = {
    "gaussians8": 2.0,
    "spirals": 4.0,
    "checkerboard": 4.0,
    "rings": 4.0,
    "gaussians25": 2.5,
    "moons": 4.0,
}
# The values of `data.source`. `pipeline` builds these sources.
NAMES = (
    *HALF_RANGES,
    *("digits", "letters", "sprites", "shapes"),
    *("tfds:NAME[/CONFIG]", "folder:PATH", "npz:PATH", "cars3d:PATH", "kth:PATH", "clouds:PATH"),
)
PATHS = tuple(name.removesuffix(":PATH") for name in NAMES if name.endswith(":PATH"))  # kinds with a path


def anchored(source: str) -> str:
    """A `data.source` whose path, if it has one, means the same in every folder (`files.anchored`)."""
    kind, _, path = source.partition(":")
    return f"{kind}:{files.anchored(path)}" if kind in PATHS else source


def last_part(source: str) -> str:
    """A `data.source` with only the last part of an absolute path; remote paths and paths with ~ stay."""
    kind, _, path = source.partition(":")
    return f"{kind}:{Path(path).name}" if kind in PATHS and os.path.isabs(path) else source


def same_kind(a: str, b: str) -> bool:
    """Whether two `data.source`s differ at most in the path of their data."""
    kinds = {a.partition(":")[0], b.partition(":")[0]}
    return a == b or (len(kinds) == 1 and kinds <= {*PATHS})


class Examples(NamedTuple):
    """kind: 'images', 'points' or 'clouds' (of `data.points` points). shape: one example's shape. dtype: the dtype that
    the source yields (float32 for an .npz of floats).

    half_range: for points, half the side of the square over which they are plotted and scored.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: type = np.uint8
    half_range: float = 0.0


def of(data: ConfigDict) -> Examples:
    """The examples of `config.data.source`. Raises `UserError` if `data.image_size` does not fit it."""
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
