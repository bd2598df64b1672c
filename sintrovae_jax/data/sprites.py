"""Sprites: flat shapes with known class and content, so that the correct result of every transfer is known too.

    class     shape × colour × size: the object
    content   rotation × position: its pose

Any class can be drawn with any content. One class in eight and one content in eight are held out: training combines the
other classes with the other contents, and in test images both are new. Every picture is a function of its class number
and its content number. Every shape has one tip, which points upwards at rotation 0, so that rotations of different
shapes can be compared.
"""

import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import tensorflow as tf
from matplotlib import colors

from sintrovae_jax.data.images import Format
from sintrovae_jax.data.source import Factors, Images
from sintrovae_jax.data.sources import Shrunk, as_float, chosen, dispatches
from sintrovae_jax.errors import UserError
from sintrovae_jax.parallel import Shard

SHAPES = ("triangle", "dart", "house", "drop", "heart", "bell")
COLOURS, ROTATIONS, POSITIONS = 12, 12, 8  # hues; rotations in the whole circle; positions in each direction
SIZES = (0.26, 0.34, 0.42, 0.5)  # the radius around a shape, as a fraction of half the picture's side
REACH = 0.45  # the largest distance of a shape's centre from the middle in each direction, as a fraction of the same
CLASSES, CONTENTS = len(SHAPES) * COLOURS * len(SIZES), ROTATIONS * POSITIONS**2
_HELD_OUT = 8  # one in this many is held out
_AT_ONCE = 512  # pictures drawn at once
_TABLE, _EDGE = 96, 1.5  # cells per side of a shape's table of distances, which reaches from -_EDGE to _EDGE radii


def _arc(
    centre: tuple[float, float], radius: float, start: float, stop: float, count: int = 24
) -> list[tuple[float, float]]:
    angles = np.radians(np.linspace(start, stop, count))
    return [(centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a)) for a in angles]


def outlines() -> dict[str, np.ndarray]:
    """{shape: corners [V, 2]}, x to the right, y upwards, centred on the area; the farthest corner's distance is 1."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    heart = np.stack([16 * np.sin(t) ** 3, -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)], 1)
    raw = {
        "triangle": [(0, 1), (-0.55, -0.8), (0.55, -0.8)],
        "dart": [(0, 1), (-0.8, -0.9), (0, -0.35), (0.8, -0.9)],
        "house": [(0, 1), (-0.7, 0.25), (-0.7, -0.8), (0.7, -0.8), (0.7, 0.25)],
        "drop": [(0, 1.2), *_arc((0, -0.3), 0.6, 156, 384)],
        "heart": heart,  # its tip is up
        "bell": [*_arc((0, 0.6), 0.3, 0, 180), (-0.35, -0.2), (-0.9, -0.7), (0.9, -0.7), (0.35, -0.2)],
    }
    return {name: _centred(np.asarray(raw[name], np.float64)) for name in SHAPES}


def _centred(corners: np.ndarray) -> np.ndarray:
    following = np.roll(corners, -1, 0)
    cross = corners[:, 0] * following[:, 1] - following[:, 0] * corners[:, 1]
    corners = corners - ((corners + following) * cross[:, None]).sum(0) / (3 * cross.sum())
    return corners / np.linalg.norm(corners, axis=1).max()


def distances(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Signed distances of points [N, 2] from the outline with these corners [V, 2], negative inside. Returns [N]."""
    sides = np.roll(corners, -1, 0) - corners
    from_corner = points[:, None] - corners  # [N, V, 2]
    along = ((from_corner * sides).sum(-1) / (sides**2).sum(-1)).clip(0, 1)
    nearest = np.linalg.norm(from_corner - along[..., None] * sides, axis=-1).min(1)
    # Inside: a ray to the right crosses the outline an odd number of times.
    y, start, stop = points[:, None, 1], corners[:, 1], np.roll(corners, -1, 0)[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = corners[:, 0] + (y - start) / (stop - start) * sides[:, 0]
    crossed = ((start > y) != (stop > y)) & (points[:, None, 0] < crossing)
    return np.where(crossed.sum(1) % 2, -nearest, nearest)


@functools.cache
def _tables() -> np.ndarray:
    """Signed distances, in radii, of a grid's points from every shape, [shapes · (_TABLE + 1)²], x fastest."""
    axis = np.linspace(-_EDGE, _EDGE, _TABLE + 1)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    return np.concatenate([distances(corners, points) for corners in outlines().values()]).astype(np.float32)


def _looked_up(shape: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The distances, in radii, of points x, y [N, S, S] from shapes [N, 1, 1], interpolated in their tables."""
    column, row = (tf.clip_by_value((v / _EDGE + 1) * (_TABLE / 2), 0, _TABLE - 1e-3) for v in (x, y))
    left, low = tf.floor(column), tf.floor(row)
    right, high, width = column - left, row - low, _TABLE + 1
    corner = (shape * width + tf.cast(low, tf.int32)) * width + tf.cast(left, tf.int32)
    a, b, c, d = (tf.gather(_tables(), corner + step) for step in (0, 1, width, width + 1))
    return (1 - high) * ((1 - right) * a + right * b) + high * ((1 - right) * c + right * d)


@functools.cache
def _hues() -> np.ndarray:
    hsv = np.stack([np.arange(COLOURS) / COLOURS, np.full(COLOURS, 0.9), np.ones(COLOURS)], 1)
    return colors.hsv_to_rgb(hsv).astype(np.float32)


def render(classes: tf.Tensor, contents: tf.Tensor, size: int, background: tuple[int, int, int]) -> tf.Tensor:
    """The pictures of classes [N] below `CLASSES` with contents [N] below `CONTENTS`, uint8 [N, size, size, 3].

    Edges are antialiased by the distance of a pixel's centre. Positions count to the right and upwards.
    """

    def digits(number, *bases):
        number, out = tf.cast(number, tf.int32)[:, None, None], []
        for base in bases:
            out.append(number % base)
            number //= base
        return out

    shape, colour, radius = digits(classes, len(SHAPES), COLOURS, len(SIZES))
    turn, column, row = digits(contents, ROTATIONS, POSITIONS, POSITIONS)
    radius = tf.gather(tf.constant(SIZES, tf.float32), radius)
    angle = tf.cast(turn, tf.float32) * (2 * np.pi / ROTATIONS)
    centre_x, centre_y = (REACH * (2 * tf.cast(v, tf.float32) / (POSITIONS - 1) - 1) for v in (column, row))
    axis = (2 * tf.range(size, dtype=tf.float32) + 1) / size - 1
    x, y = (axis[None, None, :] - centre_x) / radius, (-axis[None, :, None] - centre_y) / radius
    cos, sin = tf.cos(angle), tf.sin(angle)
    away = _looked_up(shape, cos * x + sin * y, cos * y - sin * x)
    covered = tf.clip_by_value(0.5 - away * radius * (size / 2), 0, 1)[..., None]
    paint = 255 * tf.gather(tf.constant(_hues()), colour)  # [N, 1, 1, 3]
    behind = tf.constant(background, tf.float32)
    return tf.cast(tf.round(behind + covered * (paint - behind)), tf.uint8)


def _split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the numbers below `count`: those for training, and those held out."""
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[count // _HELD_OUT :]), np.sort(order[: count // _HELD_OUT])


class Sprites:
    """The source. Pictures are drawn on demand, not stored.

    Raises `UserError` for a format without colours.
    """

    skipped: Mapping[str, str] = MappingProxyType({})
    identity = None

    def __init__(self, form: Format):
        if form.channels != 3:
            raise UserError("data.source=sprites is in colour: set data.image_channels=3")
        self._form = form
        self._classes, self._contents = _split(CLASSES), _split(CONTENTS)
        self.count = len(self._classes[0]) * len(self._contents[0])
        self.fingerprint = f"sprites {form}"

    def render(self, classes: np.ndarray, contents: np.ndarray) -> np.ndarray:
        """The pictures of classes [N] with contents [N], float32 [N, size, size, 3] in [0, 1]."""
        return as_float(np.concatenate([self._draw(*piece).numpy() for piece in _pieces(classes, contents, _AT_ONCE)]))

    def _draw(self, classes, contents):
        return render(classes, contents, self._form.size, self._form.background)

    def _pairs(self, part: int) -> np.ndarray:
        """All pairs of a class and a content of this part, shuffled, [N, 2]."""
        classes, contents = self._classes[part], self._contents[part]
        pairs = np.stack(np.meshgrid(classes, contents, indexing="ij"), -1).reshape(-1, 2)
        return pairs[np.random.default_rng(part).permutation(len(pairs))]

    @functools.cached_property
    def factors(self) -> Factors:
        return Factors(*(tuple(self._pairs(part).T) for part in (0, 1)))

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The classes. Training and test images have no class in common."""
        return self.factors.train[0], self.factors.test[0]

    def stream(self, seed: int, start: int, stop: int, shard: Shard, substeps: int = 1) -> tf.data.Dataset:
        classes, contents = self._classes[0], self._contents[0]

        def one_dispatch(steps):
            index = chosen(seed, steps, self.count, shard)
            return self._draw(tf.gather(classes, index // len(contents)), tf.gather(contents, index % len(contents)))

        return dispatches(start, stop, substeps).map(one_dispatch, num_parallel_calls=tf.data.AUTOTUNE)

    def train(self, size: int) -> Iterator[np.ndarray]:
        return (self._draw(*piece).numpy() for piece in _pieces(*self.factors.train, size))

    def test(self, n: int, seed: int) -> np.ndarray:
        del seed  # always the same first n
        return self.render(*self._pairs(1)[:n].T)

    def at(self, size: int) -> Images:
        return self if size == self._form.size else Shrunk(self, size)


def _pieces(classes, contents, size):
    return ((classes[start : start + size], contents[start : start + size]) for start in range(0, len(classes), size))
