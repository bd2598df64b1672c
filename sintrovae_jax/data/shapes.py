"""Shapes: clouds of points on simple solids, and on tables and chairs made of them, with known class and proportions.

Every shape is a function of its class and of five factors in [0, 1], which determine the width, depth, height and
thickness of its parts. Points are uniform by area; the y axis points upwards.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from sintrovae_jax.data.clouds import Clouds, normalized
from sintrovae_jax.data.sources import Arrays

FACTORS = 5
TRAIN, TEST = 4800, 600  # shapes


@dataclasses.dataclass(frozen=True)
class Part:
    """A solid around a centre. area: of its surface. sample: (rng, n) -> n points on its surface [n, 3], around 0."""

    area: float
    sample: Callable[[np.random.Generator, int], np.ndarray]
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)


def box(width: float, height: float, depth: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Part:
    sides = np.array([width, height, depth])
    areas = 2 * np.prod(sides) / sides  # the area of the two sides across each axis

    def sample(rng, n):
        points = rng.uniform(-0.5, 0.5, (n, 3))
        points[np.arange(n), rng.choice(3, n, p=areas / areas.sum())] = rng.choice([-0.5, 0.5], n)
        return points * sides

    return Part(float(areas.sum()), sample, centre)


def _disc(rng, n, radius, y):
    angle, r = rng.uniform(0, 2 * np.pi, n), radius * np.sqrt(rng.uniform(size=n))
    return np.stack([r * np.cos(angle), np.broadcast_to(y, n), r * np.sin(angle)], 1)


def cylinder(radius: float, height: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Part:
    side, ends = 2 * math.pi * radius * height, 2 * math.pi * radius**2

    def sample(rng, n):
        points = _disc(rng, n, radius, rng.choice([-height / 2, height / 2], n))
        on_side = rng.uniform(size=n) < side / (side + ends)
        angle, y = rng.uniform(0, 2 * np.pi, n), rng.uniform(-height / 2, height / 2, n)
        around = np.stack([radius * np.cos(angle), y, radius * np.sin(angle)], 1)
        return np.where(on_side[:, None], around, points)

    return Part(side + ends, sample, centre)


def cone(radius: float, height: float) -> Part:
    side, base = math.pi * radius * math.hypot(radius, height), math.pi * radius**2

    def sample(rng, n):
        points = _disc(rng, n, radius, -height / 2)
        on_side = rng.uniform(size=n) < side / (side + base)
        # The side is a disc whose middle was pulled upwards.
        away = np.hypot(points[:, 0], points[:, 2]) / radius
        points[:, 1] += np.where(on_side, height * (1 - away), 0)
        return points

    return Part(side + base, sample)


def torus(radius: float, tube: float) -> Part:
    def sample(rng, n):
        angle, around = rng.uniform(0, 2 * np.pi, (2, n))
        # The density of `around` is proportional to 1 + tube/radius·cos: rejected angles are mirrored.
        kept = rng.uniform(-1, 1, n) < tube / radius * np.cos(around)
        around = np.where(kept, around, np.pi - around)
        away = radius + tube * np.cos(around)
        return np.stack([away * np.cos(angle), tube * np.sin(around), away * np.sin(angle)], 1)

    return Part(4 * math.pi**2 * radius * tube, sample)


def _legs(width, depth, height, thick, round_):
    """Four legs from y = -height to 0, at the corners of a rectangle width × depth."""
    corners = [(x * (width - thick) / 2, -height / 2, z * (depth - thick) / 2) for x in (-1, 1) for z in (-1, 1)]
    return [cylinder(thick / 2, height, c) if round_ else box(thick, height, thick, c) for c in corners]


def _table(u):
    width, depth, height, thick = 0.7 + 0.5 * u[0], 0.5 + 0.5 * u[1], 0.4 + 0.5 * u[2], 0.04 + 0.06 * u[3]
    if u[4] < 0.5:
        return [box(width, 0.06, depth, (0, 0.03, 0)), *_legs(width, depth, height, thick, False)]
    column, foot = cylinder(thick, height, (0, -height / 2, 0)), cylinder(depth / 3, 0.04, (0, -height - 0.02, 0))
    return [cylinder(width / 2, 0.06, (0, 0.03, 0)), column, foot]


def _chair(u):
    width, seat, back, thick = 0.4 + 0.25 * u[0], 0.3 + 0.3 * u[1], 0.3 + 0.5 * u[2], 0.03 + 0.05 * u[3]
    top = box(width, back, 0.05, (0, 0.05 + back / 2, 0.025 - 0.2))
    return [box(width, 0.05, 0.4, (0, 0.025, 0)), top, *_legs(width, 0.4, seat, thick, u[4] < 0.5)]


CLASSES: dict[str, Callable[[np.ndarray], list[Part]]] = {
    "box": lambda u: [box(*(0.3 + 0.7 * u[:3]))],
    "cylinder": lambda u: [cylinder(0.15 + 0.35 * u[0], 0.3 + 0.7 * u[1])],
    "cone": lambda u: [cone(0.2 + 0.3 * u[0], 0.4 + 0.6 * u[1])],
    "torus": lambda u: [torus(0.4, 0.06 + 0.2 * u[0])],
    "table": _table,
    "chair": _chair,
}


def sample(parts: list[Part], n: int, rng: np.random.Generator) -> np.ndarray:
    """n points, uniform by area on the surfaces of all parts, even where parts touch. Returns float64 [n, 3]."""
    areas = np.array([part.area for part in parts])
    counts = rng.multinomial(n, areas / areas.sum())
    return np.concatenate([part.sample(rng, k) + part.centre for part, k in zip(parts, counts, strict=True)])


def draw(classes: np.ndarray, factors: np.ndarray, points: int, radius: float, seed: int) -> np.ndarray:
    """The clouds, float32 [N, points, 3], of shapes with these classes [N] and factors [N, FACTORS].

    radius: radius of the sphere that each cloud is centred in and scaled to; 0: left as it is.
    """
    rng, made = np.random.default_rng(seed), list(CLASSES.values())
    clouds = [sample(made[number](u), points, rng) for number, u in zip(classes, factors, strict=True)]
    return np.stack([normalized(cloud, radius) for cloud in clouds])


def build(points: int, radius: float) -> Clouds:
    """The source: 4,800 shapes to train and 600 to test, equally many of each class, the same for every seed."""
    classes = np.arange(TRAIN + TEST) % len(CLASSES)
    factors = np.random.default_rng(0).uniform(size=(TRAIN + TEST, FACTORS))
    x = draw(classes, factors, points, radius, seed=1)
    return Clouds(Arrays(x[:TRAIN], x[TRAIN:], classes=(classes[:TRAIN], classes[TRAIN:])))
