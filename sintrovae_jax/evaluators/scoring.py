"""The input of evaluators: a model, its data, and intermediate results that several evaluators share."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sintrovae_jax import models, objectives, passes
from sintrovae_jax.data.source import Images, Source, labels_of_test, of_images
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import chosen, features
from sintrovae_jax.inference import Model
from sintrovae_jax.models import Stage


class _Blended:
    """A source whose images are blended with their 2×2 averages, for a stage at which a level is blended in."""

    fingerprint = None  # the images change at every step, so nothing is cached

    def __init__(self, source: Images, shown: Callable[[jax.Array, Stage], jax.Array], stage: Stage):
        self.whole, self._shown, self._stage = source, shown, stage
        self.skipped, self.labels, self.factors = source.skipped, source.labels, source.factors
        self.identity = source.identity
        self.count, self.stream, self.at = source.count, source.stream, source.at  # training steps do the blending

    def test(self, n: int, seed: int) -> np.ndarray:
        return np.asarray(self._shown(jnp.asarray(self.whole.test(n, seed)), self._stage))

    def train(self, size: int) -> Iterator[np.ndarray]:
        floats = (passes.as_float(jnp.asarray(x)) for x in self.whole.train(size))
        return (np.asarray(self._shown(x, self._stage)) for x in floats)


def source_of(model: Model, source: Source) -> Source:
    """The source, with images as the model last saw them in training, for networks that are still growing."""
    if model.stage is None:
        return source
    growth, images = models.family_of(model.config.model).growth, of_images(source).at(model.shape[0])
    if growth is None or model.stage.blend == 1:
        return images
    return _Blended(images, growth.shown, model.stage)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """folder: for figures. kept: objects that the evaluations of one run share, such as sources and extractors."""

    model: Model
    source: Source
    folder: Path
    kept: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        return self.model.config.eval.num_samples

    @property
    def seed(self) -> int:
        return self.model.config.seed

    @property
    def images(self) -> Images:
        """The source, if its examples are images. Raises `UserError` if they are points."""
        return of_images(self.source)

    @functools.cached_property
    def extractor(self) -> features.Extractor:
        # One extractor for a level of networks that grow: images that are blended in change at every step.
        images = self.source.whole if isinstance(self.source, _Blended) else self.images
        e = self.model.config.eval
        key = ("extractor", e.features, e.inception, images.fingerprint)
        kept = {} if images.fingerprint is None else self.kept
        if key not in kept:
            kept[key] = features.build(self.model.config, images)
        return kept[key]

    @property
    def _keep(self) -> bool:
        """Whether an evaluator needs the feature vectors, not only their moments."""
        return any(evaluator.vectors for evaluator in chosen(self.model.config))

    @functools.cached_property
    def generated(self) -> features.Summary:
        """The summary of `num_samples` samples."""
        return features.summarise(self._vectors(self.samples()), self._keep)

    def samples(self) -> Iterator[np.ndarray]:
        """`num_samples` samples in pieces; a conditional model cycles through the classes (`Model.even_labels`)."""
        z, size = self.model.prior(self.seed, self.num_samples), self._size
        labels = self.model.even_labels(self.num_samples)
        for start in range(0, len(z), size):
            part = np.arange(start, min(start + size, len(z)))
            part_labels = None if labels is None else labels[part]
            yield np.asarray(self.model.decode(z[part], noise=part, role="prior", labels=part_labels))

    @functools.cached_property
    def real(self) -> features.Summary:
        """The summary of the images of `eval.reference`, at most `eval.num_real`; cached in `eval.cache`."""
        config, source = self.model.config, self.images
        e = config.eval

        def compute():
            if e.reference == "train":
                pieces = source.train(self._size)
            else:
                test = source.test(e.num_real, self.seed)
                pieces = (test[start : start + self._size] for start in range(0, len(test), self._size))
            return features.summarise(self._vectors(features.limited(pieces, e.num_real)), self._keep)

        key = (source.fingerprint, e.reference, e.num_real, self._keep, e.features, self.extractor.fingerprint)
        return features.cached(e.cache if source.fingerprint else "", key, compute)

    def _vectors(self, pieces):
        return features.vectors(self.extractor, pieces, self._size)

    @property
    def _size(self) -> int:
        return self.model.config.eval.batch_size

    def compared(self, at_least: int, metric: str) -> tuple[features.Summary, features.Summary]:
        """The summaries of real images and of samples. Raises `UserError` if either has fewer than `at_least`."""
        if self.num_samples < at_least:  # before anything is computed
            raise UserError(f"{metric} needs at least {at_least} samples: eval.num_samples={self.num_samples}")
        real = self.real
        if real.count < at_least:
            raise UserError(f"{metric} needs at least {at_least} real images: there are {real.count}")
        return real, self.generated

    def described(self, name: str, metrics: dict[str, float], samples: int, real: int) -> dict[str, Any]:
        """The values of a distribution metric, named after the extractor, and everything that they depend on."""
        features_name, counts = self.model.config.eval.features, {"samples": samples, "real": real}
        named = {features.metric(key, features_name): value for key, value in metrics.items()}
        named |= {f"{features.metric(name, features_name)}_{key}": n for key, n in counts.items()}
        text = {"features": f"{self.extractor.name} {self.extractor.fingerprint}"}
        return named | self.extractor.metrics | text | {"reference": self.model.config.eval.reference}

    def test(self, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The first n test examples, and their labels for a conditional model."""
        x = self.source.test(n, self.seed)
        return x, labels_of_test(self.model.config, self.source, len(x))

    def scores(self, x: np.ndarray, labels: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Scores of the images x, float64 [N] each, higher for images that the model finds more likely.

        likelihood: log p(x). elbo: the ELBO, from as many samples of the posterior. kl: -KL(q(z|x) || prior), in nats.
        reconstruction: minus the squared error of the decoded posterior mean, summed over dimensions. labels: [N], for
        a conditional model, whose scores are all given the labels.
        """
        config = self.model.config
        samples = config.eval.likelihood.importance_samples
        estimate = self.model.importance_weighted(x, samples, key=self.seed, labels=labels)
        posterior = self.model.encode(x, labels)
        kl = self.model.kl(posterior, self.seed)
        scores = {
            "likelihood": estimate.log_likelihood,
            "elbo": estimate.elbo,
            "kl": -kl,
            "reconstruction": -objectives.mse(jnp.asarray(x), self.model.decode(posterior.mean, labels=labels)),
        }
        return {name: np.asarray(score, np.float64) for name, score in scores.items()}

    def highest_scores(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """`scores` of images without labels; for a conditional model, the highest score over all labels."""
        classes = self.model.config.model.classes
        if not classes:
            return self.scores(x)
        each = [self.scores(x, np.full(len(x), label, np.int32)) for label in range(classes)]
        return {name: np.max([scores[name] for scores in each], 0) for name in each[0]}

    @functools.cached_property
    def test_scores(self) -> dict[str, np.ndarray]:
        """`scores` of the first `eval.likelihood.num_scored` test images."""
        return self.scores(*self.test(self.model.config.eval.likelihood.num_scored))
