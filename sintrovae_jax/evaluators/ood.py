"""Telling data the model was trained on from other data: one score an image, test images against `eval.ood_source`.

Scores are higher for what the model finds likelier (`Scoring.scores`); test images are the positives.
"""

import math
from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators.scoring import Scoring, source_of
from sintrovae_jax.plots import draw


class Detection(NamedTuple):
    """How well a threshold on a score separates the two."""

    auroc: float  # the probability that a test image scores higher than one of the other source
    aupr: float  # area under precision over recall of test images (average precision)
    fpr95: float  # the share of the other source above the highest threshold that keeps 95 % of test images


def detection(inside: np.ndarray, outside: np.ndarray) -> Detection:
    """From scores [N] of what is to be accepted and [M] of what is not. All NaN where a score is not finite."""
    if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        return Detection(math.nan, math.nan, math.nan)
    label = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    score = np.concatenate([inside, outside])
    false_positive, true_positive, _ = roc_curve(label, score, drop_intermediate=False)
    fpr95 = false_positive[np.argmax(true_positive >= 0.95)]
    return Detection(roc_auc_score(label, score), average_precision_score(label, score), float(fpr95))


def bootstrap(inside: np.ndarray, outside: np.ndarray, times: int, seed: int) -> tuple[Detection, Detection]:
    """Ends of the 95 % interval of each figure: percentiles over `times` resamplings of both, with replacement."""
    rng = np.random.default_rng(seed)
    found = [detection(*(rng.choice(scores, len(scores)) for scores in (inside, outside))) for _ in range(times)]
    low, high = np.percentile(found, (2.5, 97.5), axis=0)
    return Detection(*low), Detection(*high)


def evaluate(scoring: Scoring) -> dict:
    """ood_FIGURE_SCORE for every figure of `Detection` and every score; with _low and _high, the ends of its interval.

    Writes ood.png, the histograms. As many images of the test split of `eval.ood_source` as test images, at most.
    """
    model, config = scoring.model, scoring.model.config
    other = source_of(model, outside_source(config))
    outside = scoring.scores(other.test(len(scoring.test_scores["likelihood"]), scoring.seed))
    results = {}
    for name, inside in scoring.test_scores.items():
        found = detection(inside, outside[name])
        low, high = bootstrap(inside, outside[name], config.eval.bootstrap, scoring.seed)
        for ending, figures in (("", found), ("_low", low), ("_high", high)):
            results |= {f"ood_{figure}_{name}{ending}": float(v) for figure, v in figures._asdict().items()}
    names = (config.data.source, config.eval.ood_source)
    pairs = {name: (inside, outside[name]) for name, inside in scoring.test_scores.items()}
    draw.histograms(scoring.folder / "ood.png", pairs, names)
    counts = {"ood_images": len(outside["likelihood"]), "ood_test_images": len(scoring.test_scores["likelihood"])}
    about = {"ood_source": config.eval.ood_source, "importance_samples": config.eval.importance_samples}
    return results | counts | about | {"observation_std": model.observation_std}


_built = {}  # by `config.data` and the source: what every evaluation of a run needs again


def outside_source(config):
    """The source that `config.eval.ood_source` names, read like `config.data`, once a process. Raises `UserError`."""
    from sintrovae_jax.data import pipeline  # TensorFlow

    other = config.data.copy_and_resolve_references()
    other.source = config.eval.ood_source
    key = str(other)
    if key not in _built:
        try:
            _built[key] = pipeline.build(other)
        except UserError as error:
            raise UserError(f"eval.ood_source: {error}") from None
    return _built[key]
