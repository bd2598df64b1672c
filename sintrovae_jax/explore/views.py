"""The views of a model on the page: numbers and pictures in, pictures (uint8 [height, width, 3]) and texts out.

Does not need Gradio.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from sintrovae_jax import importance, objectives, seeds
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import density
from sintrovae_jax.explore import drawing
from sintrovae_jax.explore.batches import MANY, Batches
from sintrovae_jax.models import Model, Posterior
from sintrovae_jax.models.family import table
from sintrovae_jax.models.style import StyleModel
from sintrovae_jax.models.trained import between, line
from sintrovae_jax.models.two_encoder import TwoEncoderModel

SLIDERS = 8  # the latent dimensions that are used most
REACH = 4.0  # of a slider, in standard deviations of the prior
HOTTEST = 1.5  # temperature
STEPS = 8  # of an interpolation, both ends included
_KL_SAMPLES = 256
_USED = 0.1  # nats of KL from which a dimension counts as used
_ACROSS = 8  # samples in a row
_MIXED = 4  # rows and columns of mixed styles
_POINTS, _GRID = 2048, 160


class Place(NamedTuple):
    """A point z [Z] in latent space; role: the distribution that z is from (`Model.decode`); label: its class."""

    z: np.ndarray
    role: str
    label: int | None


class Views:
    """The views of one model. Impossible requests raise `UserError`.

    Pictures x are float32 [*shape] in [0, 1]; None: the seed's sample. label: a class of a conditional model, None for
    other models; samples without a label have all classes in turn.
    """

    def __init__(self, model: Model) -> None:
        self.model, self._batches = model, Batches(model)
        self.kind = examples.of(model.config.data).kind
        self.kl = self._kl_per_dimension()
        self.order = np.argsort(-self.kl, kind="stable")[:SLIDERS]  # the dimensions of the sliders
        self._energy = self._grid_energy() if self.kind == "points" else None

    def can(self) -> tuple[str, ...]:
        """The views that this model has."""
        if self.kind == "points":
            return ("sample",)
        if self.kind == "clouds":
            return ("sample", "latents", "interpolate")
        mix = ("mix",) if isinstance(self.model, StyleModel) else ()
        translate = ("translate",) if isinstance(self.model, TwoEncoderModel) else ()
        return ("sample", "latents", "score", "interpolate", *mix, *translate)

    @property
    def classes(self) -> int:
        """The number of classes of a conditional model, 0 for others."""
        return int(self.model.config.model.classes)

    @property
    def layers(self) -> int:
        """The number of layers of a style-based model, each of which has a style."""
        assert isinstance(self.model, StyleModel)
        return int(self.model.styles(self.model.prior(0, 1)).shape[1])

    @property
    def truncates(self) -> bool:
        """Whether samples can be truncated; other models' samples have a temperature."""
        return isinstance(self.model, StyleModel)

    def summary(self) -> str:
        """A sentence that describes the model."""
        config, shape = self.model.config, self.model.shape
        kinds = {
            "images": "Pictures of " + "×".join(map(str, shape)),
            "points": f"Points of the 2D density {config.data.source}",
            "clouds": f"Clouds of {shape[0]} points",
        }
        classes = f", {self.classes} classes" if self.classes else ""
        return (
            f"{kinds[self.kind]}{classes}, {config.model.z_dim} latent dimensions, of which "
            f"{int((self.kl > _USED).sum())} are used (KL above {_USED} nats on the model's own samples); "
            f"{config.model.family} networks at step {self.model.step}"
        )

    def sample(self, seed: object, spread: object = 1.0, label: object = None) -> np.ndarray:
        """Samples. spread: for a style-based model the truncation, from 0 to 1; for others the prior's temperature,
        from 0 to 1.5, a factor of its standard deviation.

        For points: samples next to the density that the encoder sees.
        """
        columns = self.classes if 1 < self.classes <= 12 else min(_ACROSS, self._batches.many // 2)
        rows = min(self._batches.many, 8 if self.kind == "clouds" else MANY) // columns
        count = _POINTS if self.kind == "points" else max(rows, 1) * columns
        spread = number(spread, 0, 1 if self.truncates else HOTTEST, "truncation" if self.truncates else "temperature")
        labels = self._labels(label, count)
        temperature = 1.0 if self.truncates else spread
        z = np.asarray(self.model.prior(seed_of(seed), count, temperature=temperature))
        if self._energy is not None:
            x = np.asarray(self.model.decode(z, role="prior", labels=labels))
            return drawing.density(x, self._energy, examples.of(self.model.config.data).half_range)
        if self.truncates:
            x = self._batches.synthesize(self._batches.styles(z, spread), np.arange(count))
        else:
            x = self._batches.decode(z, "prior", labels)
        return self._drawn(x, columns)

    # --- latents -----------------------------------------------------------------------------------------------------

    def place(self, x: np.ndarray | None, seed: object, label: object = None) -> Place:
        """The mean of a picture's posterior, or the latent of the seed's sample."""
        chosen = self._one_label(label)
        if x is None:
            return Place(np.asarray(self.model.prior(seed_of(seed), 1))[0], "prior", chosen)
        mean, _ = self._batches.encode(x[None], self._labels(chosen, 1))
        return Place(mean[0], "posterior", chosen)

    def sliders(self, place: Place) -> list[float]:
        """The sliders' positions for this point, in standard deviations of the prior, rounded to 2 digits."""
        return [round(float(v), 2) for v in (place.z[self.order] / self._std).clip(-REACH, REACH)]

    def moved(self, place: Place, values: list[object]) -> np.ndarray:
        """The latent [Z] with the sliders' values in their dimensions, and unchanged in the others."""
        if len(values) != len(self.order):
            raise UserError(f"this model has {len(self.order)} sliders, not {len(values)}")
        z = place.z.copy()
        z[self.order] = [self._std * number(v, -REACH, REACH, "a slider") for v in values]
        return z

    def edited(self, place: Place, values: list[object]) -> np.ndarray:
        """The example at this point, and next to it the example at the sliders' point."""
        return self._drawn(self._decoded(np.stack([place.z, self.moved(place, values)]), place), 2)

    def traversed(self, place: Place) -> np.ndarray:
        """A column for each slider: the examples with it at -3, -1, 1 and 3, and the other sliders unchanged."""
        values = np.array([-3, -1, 1, 3]) * self._std
        z = np.tile(place.z, (len(values), len(self.order), 1))
        for column, dimension in enumerate(self.order):
            z[:, column, dimension] = values
        return self._drawn(self._decoded(z.reshape(-1, z.shape[-1]), place), len(self.order))

    # --- pictures ----------------------------------------------------------------------------------------------------

    def picture(self, x: np.ndarray | None, seed: object, label: object = None) -> np.ndarray:
        """x, or the seed's sample, clipped to the range of training data: [*shape]."""
        if x is not None:
            return x
        place = self.place(None, seed, label)
        sample = self._decoded(place.z[None], place)[0]
        return sample.clip(0, 1) if self.kind == "images" else sample

    def score(
        self, x: np.ndarray | None, seed: object, samples: object = 60, label: object = None
    ) -> tuple[np.ndarray, str]:
        """A picture, its reconstruction and the error of every pixel; and log p(x), the ELBO and the KL in Markdown.

        samples: the number of importance samples, 1 to 1,000.
        """
        count = int(number(samples, 1, 1000, "importance samples"))
        shown = self.picture(x, seed, label)
        labels = self._labels(self._one_label(label), 1)
        posterior = self._batches.encode(shown[None], labels)
        recon = self._batches.decode(posterior[0], "posterior", labels)[0]
        error = error_map(shown, recon)
        most = float(error.max())
        colours = drawing.heat(error / max(most, 1e-12))
        three = np.stack([np.broadcast_to(image, (*shown.shape[:2], 3)) for image in (shown, recon, colours)])
        kl = float(self.model.kl(Posterior(*map(jnp.asarray, posterior)))[0])
        squared = float(np.square(shown - recon).sum())
        lines = [
            f"The highest error, {most:.2f}, is white. Squared error {squared:.2f}, KL {kl:,.1f} nats.",
            self._likelihood(shown, count, labels),
        ]
        return drawing.table(three, 3), "\n\n".join(lines)

    def _likelihood(self, x, count, labels):
        std = self.model.observation_std
        if not std > 0:
            return (
                f"There is no log p(x): objective.reconstruction={self.model.config.objective.reconstruction} is not "
                "the error of a Gaussian, and eval.likelihood.observation_std is not set."
            )
        found = self.model.importance_weighted(x[None], count, labels=labels)
        log_p, elbo = float(found.log_likelihood[0]), float(found.elbo[0])
        bits = importance.bits_per_dimension(log_p, math.prod(self.model.shape))
        given = " given the class" if self.classes else ""
        return (
            f"**log p(x){given} {log_p:,.1f} nats** ({bits:.2f} bits per dimension, {count} importance samples), "
            f"ELBO {elbo:,.1f} nats, with a standard deviation of p(x|z) of {std:.3g}."
        )

    def interpolated(
        self,
        a: np.ndarray | None,
        b: np.ndarray | None,
        seed_a: object,
        seed_b: object,
        path: str = "linear",
        label_a: object = None,
        label_b: object = None,
    ) -> np.ndarray:
        """a, the decoded points from a to b, and b."""
        if path not in self.model.paths:
            raise UserError(f"a path of interpolation is one of {', '.join(self.model.paths)}, not {path!r}")
        ends = np.stack([self.picture(a, seed_a, label_a), self.picture(b, seed_b, label_b)])
        labels = self._pair(label_a, label_b)
        z = self._batches.encode(ends, labels)[0]
        t = jnp.linspace(0, 1, STEPS)
        if path == "style":
            styles = jnp.asarray(self._batches.styles(z))
            x = self._batches.synthesize(np.asarray(between(styles[:1], styles[1:], t, line)))
        else:
            points = between(jnp.asarray(z[:1]), jnp.asarray(z[1:]), t, self.model.paths[path])
            x = self._batches.decode(np.asarray(points), "posterior", self._blended(labels, np.asarray(t)))
        return self._drawn(np.concatenate([ends[:1], x, ends[1:]]), (STEPS + 2) // 2)

    def mixed(self, seed_rows: object, seed_columns: object, layers: object, truncation: object = 1.0) -> np.ndarray:
        """A table of styles: the first `layers` of an image have its row's style, the others its column's."""
        assert isinstance(self.model, StyleModel)
        truncation = number(truncation, 0, 1, "truncation")
        z = [np.asarray(self.model.prior(seed_of(seed), _MIXED)) for seed in (seed_rows, seed_columns)]
        styles = self._batches.styles(np.concatenate(z), truncation)
        kept = number(layers, 0, styles.shape[1], "layers")
        from_row = np.arange(styles.shape[1])[:, None] < kept
        inside = np.where(from_row, styles[:_MIXED, None], styles[None, _MIXED:])
        x = self._batches.synthesize(np.concatenate([styles, inside.reshape(-1, *styles.shape[1:])]))
        rows, columns, crossed = x[:_MIXED], x[_MIXED : 2 * _MIXED], x[2 * _MIXED :]
        return self._drawn(*table(columns, rows, crossed.reshape(_MIXED, _MIXED, *x.shape[1:])))

    def translated(self, a: np.ndarray | None, b: np.ndarray | None, seed_a: object, seed_b: object) -> np.ndarray:
        """A table of two pictures' classes and contents: each image has its column's class and its row's content."""
        both = np.stack([self.picture(a, seed_a), self.picture(b, seed_b)])
        classes, contents = np.split(self._batches.encode(both, None)[0], [self.model.config.model.class_dim], -1)
        z = np.concatenate([np.tile(classes, (2, 1)), np.repeat(contents, 2, 0)], -1)
        x = self._batches.decode(z, "posterior")
        return self._drawn(*table(both, both, x.reshape(2, 2, *x.shape[1:])))

    # --- shared ------------------------------------------------------------------------------------------------------

    @property
    def _std(self) -> float:
        return float(self.model.config.objective.prior_std)

    def _kl_per_dimension(self) -> np.ndarray:
        """The mean KL, per dimension, of the posteriors of the model's own samples, in nats [Z]. Needs no data.

        It is the KL to N(0, prior_std²) even if the prior is learnt: a mixture has no KL of single dimensions.
        """
        labels = self.model.even_labels(_KL_SAMPLES)
        x = self._batches.decode(np.asarray(self.model.prior(0, _KL_SAMPLES)), "prior", labels, np.arange(_KL_SAMPLES))
        mean, logvar = self._batches.encode(x.clip(0, 1) if self.kind == "images" else x, labels)
        columns = jnp.asarray(mean).reshape(-1, 1), jnp.asarray(logvar).reshape(-1, 1)
        each = objectives.kl(*columns, self._std)  # as if every dimension were an example
        return np.asarray(each).reshape(mean.shape).mean(0)

    def _grid_energy(self) -> np.ndarray:
        points = density.grid(examples.of(self.model.config.data).half_range, _GRID)
        return density.energy(self.model, points).reshape(_GRID, _GRID)

    def _drawn(self, x: np.ndarray, columns: int) -> np.ndarray:
        return drawing.clouds(x, columns) if self.kind == "clouds" else drawing.table(x, columns)

    def _decoded(self, z: np.ndarray, place: Place) -> np.ndarray:
        """z [N, Z] near a point -> [N, *shape]; all with the same noise, if the decoder adds noise."""
        return self._batches.decode(z, place.role, self._labels(place.label, len(z)))

    def _pair(self, label_a: object, label_b: object) -> np.ndarray | None:
        """The labels [2] of two examples; None for a model without classes."""
        return np.array([self._one_label(label_a), self._one_label(label_b)], np.int32) if self.classes else None

    def _blended(self, labels: np.ndarray | None, t: np.ndarray) -> np.ndarray | None:
        """The weights of the classes [T, classes] at t [T] between two labels."""
        if labels is None:
            return None
        first, last = np.eye(self.classes, dtype=np.float32)[labels]
        return (1 - t[:, None]) * first + t[:, None] * last

    def _one_label(self, label: object) -> int | None:
        """The class, for a conditional model; class 0 if none is given."""
        if not self.classes:
            return None
        return int(number(0 if label is None else label, 0, self.classes - 1, "the class"))

    def _labels(self, label: object, count: int) -> np.ndarray | None:
        """Labels [count] of one class, or of all classes in turn; None for a model without classes."""
        if not self.classes or label is None:
            return self.model.even_labels(count)
        return np.full(count, self._one_label(label), np.int32)


def error_map(x: np.ndarray, recon: np.ndarray) -> np.ndarray:
    """|x - x̂| of every pixel, averaged over its channels. [H, W, C] each -> [H, W]."""
    return np.abs(x - recon).mean(-1)


def number(value: object, low: float, high: float, what: str) -> float:
    """A number that a visitor gave. Raises `UserError` unless it is from low to high."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError(f"{what} is a number from {low:g} to {high:g}, not {value!r}")
    return float(value)


def seed_of(value: object) -> int:
    """A seed that a visitor gave, possibly as 3.0. Raises `UserError` for anything else."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if not seeds.fits(whole):
        raise UserError(f"a seed is {seeds.RANGE}, not {value!r}")
    assert isinstance(whole, int)
    return whole
