"""Detection of out-of-distribution data: scores tell test images from the images of `eval.ood.source`.

Scores are higher for images that the model finds more likely (`Scoring.scores`); test images are the positives.
"""

import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import cancellation, progress
from sintrovae_jax.data.source import Source
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import features, likelihood
from sintrovae_jax.evaluators.evaluator import Evaluator
from sintrovae_jax.keys import Key, at_least

if TYPE_CHECKING:
    from sintrovae_jax.evaluators.scoring import Scoring


log = logging.getLogger(__name__)
SCORES = ("likelihood", "elbo", "kl", "reconstruction")  # of `Scoring.scores`


class Detection(NamedTuple):
    """How well a threshold on a score separates test images from the other source."""

    auroc: float  # the probability that a test image scores higher than one of the other source
    aupr: float  # area under precision over recall of test images (average precision)
    fpr95: float  # the share of the other source above the highest threshold that keeps 95 % of test images


def detection(inside: np.ndarray, outside: np.ndarray) -> Detection:
    """inside, outside: scores [N] of test images and [M] of the other source. All NaN if a score is not finite."""
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        return Detection(math.nan, math.nan, math.nan)
    label = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    score = np.concatenate([inside, outside])
    false_positive, true_positive, _ = roc_curve(label, score, drop_intermediate=False)
    fpr95 = false_positive[np.argmax(true_positive >= 0.95)]
    return Detection(roc_auc_score(label, score), average_precision_score(label, score), float(fpr95))


def bootstrap(inside: np.ndarray, outside: np.ndarray, times: int, seed: int) -> tuple[Detection, Detection]:
    """Ends of each metric's 95 % interval: percentiles over `times` resamplings of both, with replacement."""
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in progress.counted(range(times), "resamplings"):
        cancellation.check()
        resampled.append(detection(*(rng.choice(scores, len(scores)) for scores in (inside, outside))))
    low, high = np.percentile(resampled, (2.5, 97.5), axis=0)
    return Detection(*low), Detection(*high)


def evaluate(scoring: "Scoring") -> dict[str, Any]:
    """ood_METRIC_SCORE for every metric of `Detection` and every score; with _low and _high, the ends of its interval.

    Writes ood.png, the histograms. Uses at most as many images of `eval.ood.source`'s test split as test images.
    """
    from sintrovae_jax.evaluators.scoring import source_of
    from sintrovae_jax.plots import draw  # matplotlib

    model, config = scoring.model, scoring.model.config
    other = source_of(model, outside_source(config, scoring.kept))
    if config.model.classes:  # images from outside have no such labels, so neither set is given labels
        log.info("scoring all images with each of the %d labels: the highest score counts", config.model.classes)
        tested = scoring.highest_scores(scoring.test(config.eval.likelihood.num_scored)[0])
    else:
        tested = scoring.test_scores
    outside = scoring.highest_scores(other.test(len(tested["likelihood"]), scoring.seed))
    results: dict[str, Any] = {}
    for name, inside in tested.items():
        estimate = detection(inside, outside[name])
        low, high = bootstrap(inside, outside[name], config.eval.ood.bootstrap, scoring.seed)
        for ending, metrics in (("", estimate), ("_low", low), ("_high", high)):
            results |= {f"ood_{metric}_{name}{ending}": float(v) for metric, v in metrics._asdict().items()}
    names = (config.data.source, config.eval.ood.source)
    pairs = {name: (inside, outside[name]) for name, inside in tested.items()}
    draw.histograms(scoring.folder / "ood.png", pairs, names)
    counts = {"ood_images": len(outside["likelihood"]), "ood_test_images": len(tested["likelihood"])}
    about = {"ood_source": config.eval.ood.source, "importance_samples": config.eval.likelihood.importance_samples}
    return results | counts | about | {"observation_std": model.observation_std}


def outside_source(config: ConfigDict, kept: dict[Any, Any]) -> Source:
    """The source that `config.eval.ood.source` names, with the other settings of `config.data`. Built once, in `kept`.

    Raises `UserError` if there is none.
    """
    from sintrovae_jax.data import pipeline  # TensorFlow

    other = config.data.copy_and_resolve_references()
    other.source = config.eval.ood.source
    key = ("ood", str(other))
    if key not in kept:
        try:
            kept[key] = pipeline.build(other)
        except UserError as error:
            raise UserError(f"eval.ood.source: {error}") from None
    return kept[key]


def _metrics(config):
    return tuple(f"ood_{metric}_{score}" for metric in Detection._fields for score in SCORES)


def _check(config):
    features.check_images("ood", config)
    if not config.eval.ood.source:
        raise UserError("the ood evaluator needs eval.ood.source, a data.source to tell the test images from")
    likelihood.check_std("ood", config)


EVALUATOR = Evaluator(
    evaluate,
    _metrics,
    {
        "source": Key("", "a data.source whose images are to be told from the test images"),
        "bootstrap": Key(1000, "number of resamplings for the intervals", at_least(1)),
    },
    _check,
    lambda config, source, kept: outside_source(config, kept),
)
