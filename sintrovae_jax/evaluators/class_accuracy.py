"""Whether a conditional model's samples show the requested classes, according to a classifier of real images."""

from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax.data.source import of_images
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import classifier
from sintrovae_jax.evaluators.evaluator import Evaluator

if TYPE_CHECKING:
    from sintrovae_jax.evaluators.scoring import Scoring


def evaluate(scoring: "Scoring") -> dict[str, Any]:
    """class_accuracy: the share of `eval.num_samples` samples that are classified as requested; class_accuracy_Y: the
    same for label Y.

    Also classifier_accuracy, the classifier's own accuracy on test images, and which classifier it is.
    """
    model, size = scoring.model, scoring.model.config.eval.batch_size
    known = _classifier(scoring)
    asked = model.even_labels(scoring.num_samples)
    assert asked is not None
    right = np.concatenate([known.named(x, size) for x in scoring.samples()]) == asked
    each = {f"class_accuracy_{y}": float(right[asked == y].mean()) for y in range(model.config.model.classes)}
    about = {"classifier_accuracy": known.accuracy, "class_accuracy_by": f"classifier {known.fingerprint}"}
    return {"class_accuracy": float(right.mean())} | each | about


def _classifier(scoring: "Scoring") -> classifier.Trained:
    key = ("classifier", scoring.images.fingerprint)
    if key not in scoring.kept:
        scoring.kept[key] = classifier.trained(scoring.model.config, scoring.images)
    return scoring.kept[key]


def _check(config: ConfigDict) -> None:
    classes = config.model.classes
    if not classes:
        raise UserError("the class_accuracy evaluator is for conditional models: set model.classes")
    if config.eval.num_samples < classes:
        raise UserError(f"class_accuracy needs a sample of each class: eval.num_samples={config.eval.num_samples}")


EVALUATOR = Evaluator(
    evaluate,
    lambda config: ("class_accuracy", *(f"class_accuracy_{y}" for y in range(config.model.classes))),
    check=_check,
    check_source=lambda config, source, kept: classifier.check(config, of_images(source)),
)
