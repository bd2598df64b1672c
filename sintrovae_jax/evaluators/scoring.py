"""What evaluators work on: a model, its data, and what several of them need, computed once."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sintrovae_jax import models, objectives, train_step
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import features, names
from sintrovae_jax.inference import Model


class _Blended:
    """A source's images, blended with their averages as much as a stage blends in its level."""

    fingerprint = None  # another at every step: not worth keeping anything under

    def __init__(self, source, shown: Callable, stage):
        self._source, self._shown, self._stage = source, shown, stage
        self.skipped, self.labels, self.factors = source.skipped, source.labels, source.factors

    def test(self, n: int, seed: int) -> np.ndarray:
        return np.asarray(self._shown(self._source.test(n, seed), self._stage))

    def train(self, size: int) -> Iterator[np.ndarray]:
        return (np.asarray(self._shown(train_step.as_float(x), self._stage)) for x in self._source.train(size))


def source_of(model: Model, source):
    """The source of images as the model was last shown them in training, for networks that are still growing."""
    if model.stage is None:
        return source
    source = source.at(model.shape[0])
    shown = models.family(model.config.model).growth.shown
    return source if model.stage.blend == 1 else _Blended(source, shown, model.stage)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """folder: where figures go. kept: what several evaluations of one run share, as sources and extractors."""

    model: Model
    source: object  # as in data.sources
    folder: Path
    kept: dict = dataclasses.field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        return self.model.config.eval.num_samples

    @property
    def seed(self) -> int:
        return self.model.config.seed

    @functools.cached_property
    def extractor(self) -> features.Extractor:
        e, fingerprint = self.model.config.eval, self.source.fingerprint
        key = ("extractor", e.features, e.inception, fingerprint)
        if fingerprint is None:  # of a level that is being blended in: other images at every step
            return features.build(self.model.config, self.source)
        if key not in self.kept:
            self.kept[key] = features.build(self.model.config, self.source)
        return self.kept[key]

    @property
    def _keep(self) -> bool:
        """Whether someone wants the feature vectors, not only their moments."""
        return bool({"kid", "precision_recall"} & set(names(self.model.config)))

    @functools.cached_property
    def generated(self) -> features.Summary:
        """Of `num_samples` samples."""
        return features.summarise(self._vectors(self._samples()), self._keep)

    def _samples(self) -> Iterator[np.ndarray]:
        z, size = self.model.prior(self.seed, self.num_samples), self._size
        for start in range(0, len(z), size):
            some = z[start : start + size]
            yield self.model.decode(some, noise=np.arange(start, start + len(some)), role="prior")

    @functools.cached_property
    def real(self) -> features.Summary:
        """Of the images of `eval.reference`, `eval.num_real` at most; kept in `eval.cache`."""
        config, source = self.model.config, self.source
        e = config.eval

        def compute():
            if e.reference == "train":
                pieces = source.train(self._size)
            else:
                test = source.test(e.num_real, self.seed)
                pieces = (test[start : start + self._size] for start in range(0, len(test), self._size))
            return features.summarise(self._vectors(features.limited(pieces, e.num_real)), self._keep)

        what = (source.fingerprint, e.reference, e.num_real, self._keep, e.features, self.extractor.fingerprint)
        return features.cached(e.cache if source.fingerprint else "", what, compute)

    def _vectors(self, pieces):
        return features.vectors(self.extractor, pieces, self._size)

    @property
    def _size(self) -> int:
        return self.model.config.eval.batch_size

    def compared(self, at_least: int, metric: str) -> tuple[features.Summary, features.Summary]:
        """Real and generated. Raises `UserError` if one of them has fewer than `at_least`."""
        if self.num_samples < at_least:  # before anything is computed
            raise UserError(f"{metric} needs at least {at_least} samples: eval.num_samples={self.num_samples}")
        real = self.real
        if real.count < at_least:
            raise UserError(f"{metric} needs at least {at_least} real images: there are {real.count}")
        return real, self.generated

    def described(self, name: str, metrics: dict[str, float], samples: int, real: int) -> dict:
        """Values of a distribution metric, under the extractor's name, with all that they depend on."""
        whose, counts = self.model.config.eval.features, {"samples": samples, "real": real}
        named = {features.metric(key, whose): value for key, value in metrics.items()}
        named |= {f"{features.metric(name, whose)}_{key}": n for key, n in counts.items()}
        text = {"features": f"{self.extractor.name} {self.extractor.fingerprint}"}
        return named | self.extractor.metrics | text | {"reference": self.model.config.eval.reference}

    def scores(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """What the model thinks of each image of x, float64 [N], higher for what it finds likelier.

        likelihood: log p(x). elbo: of as many samples of the posterior. kl: -KL(q(z|x) || prior), in nats.
        reconstruction: minus the squared error of the decoded posterior mean, summed over dimensions.
        """
        config = self.model.config
        estimate = self.model.importance_weighted(x, config.eval.likelihood.importance_samples, key=self.seed)
        posterior = self.model.encode(x)
        kl = objectives.kl(*posterior, config.objective.prior_std)
        scores = {
            "likelihood": estimate.log_likelihood,
            "elbo": estimate.elbo,
            "kl": -kl,
            "reconstruction": -objectives.mse(x, self.model.decode(posterior.mean)),
        }
        return {name: np.asarray(score, np.float64) for name, score in scores.items()}

    @functools.cached_property
    def test_scores(self) -> dict[str, np.ndarray]:
        """`scores` of the first `eval.likelihood.num_scored` test images."""
        return self.scores(self.source.test(self.model.config.eval.likelihood.num_scored, self.seed))
