"""Whether the two codes hold class and content, by the images of an exchange, and by what each code can predict.

Uses test images with known classes and contents (`data.sources.Factors`). Training sees neither.
"""

import functools
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from sintrovae_jax import models, objectives, progress, seeds
from sintrovae_jax.data.source import Factors, Images, of_images
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators.evaluator import Evaluator

if TYPE_CHECKING:
    from sintrovae_jax.evaluators.scoring import Scoring


class Translating(Protocol):
    """A model whose family separates class and content."""

    def codes(self, x: ArrayLike) -> tuple[jax.Array, jax.Array]: ...

    def translate(self, of_class: ArrayLike, of_content: ArrayLike) -> jax.Array: ...

    def reconstruct(self, x: ArrayLike) -> jax.Array: ...


@runtime_checkable
class Drawn(Protocol):
    """A source that can render every class with every content."""

    def render(self, classes: np.ndarray, contents: np.ndarray) -> np.ndarray: ...


_CODES = ("class", "content")
_HIDDEN, _STEPS, _LEARNING_RATE = 64, 500, 1e-2  # of the classifiers


def evaluate(scoring: "Scoring") -> dict[str, float]:
    """The `accuracies` of the codes of up to `eval.num_samples` test images; for sprites, the `errors` too."""
    model: Any = scoring.model  # `Translating`, as `_check` has seen
    source = scoring.images
    x = source.test(scoring.num_samples, scoring.seed)
    known = zip(_CODES, _factors(model.config, source).test, strict=True)
    factors = {name: y[: len(x)] for name, y in known if y is not None}
    codes = dict(zip(_CODES, map(np.asarray, model.codes(x)), strict=True))
    out = accuracies(codes, factors) | {"transfer_images": len(x)}
    if isinstance(source, Drawn):
        out |= errors(model, source, x, factors)
    return out


def errors(model: Translating, source: Drawn, x: np.ndarray, factors: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean squared errors, summed over an image's dimensions, against the true image with class i and content j.

    The means are over pairs of each image i with the next image j.

    transfer_error: the error of the transferred image. transfer_copy_class, transfer_copy_content: the baselines, the
    errors of using image i or image j instead. transfer_ratio: transfer_error divided by the better baseline.
    transfer_reconstruction: the error of the true image's own reconstruction, which no exchange can be expected to
    beat.
    """
    partner = np.roll(np.arange(len(x)), -1)
    truth = source.render(factors["class"], factors["content"][partner])
    images: dict[str, ArrayLike] = {
        "transfer_error": model.translate(x, x[partner]),
        "transfer_copy_class": x,
        "transfer_copy_content": x[partner],
        "transfer_reconstruction": model.reconstruct(truth),
    }
    errors_of = {name: objectives.mse(jnp.asarray(truth), jnp.asarray(image)) for name, image in images.items()}
    out = {name: float(np.mean(errors)) for name, errors in errors_of.items()}
    best = min(out["transfer_copy_class"], out["transfer_copy_content"])
    return out | {"transfer_ratio": out["transfer_error"] / best}


def accuracies(codes: dict[str, np.ndarray], factors: dict[str, np.ndarray]) -> dict[str, float]:
    """{'A_from_B': the accuracy of a classifier of A from the code B, 'A_by_chance': the share of the most common A}.

    Each classifier is trained on every second image and tested on the rest.
    codes: {'class': [N, Z], 'content': [N, Z]}. factors: {'class': [N], 'content': [N]}, or one of them, whole numbers.
    """
    out = {}
    for factor, values in progress.counted(factors.items(), "factors read from codes by classifiers", len(factors)):
        names, y = np.unique(values, return_inverse=True)
        out[f"{factor}_by_chance"] = float(np.bincount(y[1::2]).max() / len(y[1::2]))
        for name, code in codes.items():
            z = (code - code.mean(0)) / (code.std(0) + 1e-6)
            out[f"{factor}_from_{name}"] = _accuracy(z[::2], y[::2], z[1::2], y[1::2], len(names))
    return out


class _Classifier(nn.Module):
    """Codes [B, Z] -> logits [B, classes], with one hidden layer."""

    classes: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        return nn.Dense(self.classes)(nn.relu(nn.Dense(_HIDDEN)(z)))


@functools.partial(jax.jit, static_argnums=(0,))
def _fit(network, z, y):
    """The parameters after `_STEPS` steps on all of z [N, Z] and y [N]. Does not depend on the run's seed."""
    tx = optax.adamw(_LEARNING_RATE, weight_decay=1e-2)
    params = seeds.init(network, seeds.key(0), z[:1])

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(network.apply(params, z), y).mean()

    def one(carry, _):
        params, moments = carry
        updates, moments = tx.update(jax.grad(loss)(params), moments, params)
        return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(one, (params, tx.init(params)), length=_STEPS)[0][0]


def _accuracy(z, y, z_test, y_test, classes):
    network = _Classifier(classes)
    params = _fit(network, jnp.asarray(z), jnp.asarray(y))
    return float((np.asarray(network.apply(params, z_test)).argmax(1) == y_test).mean())


def _metrics(config):
    known = ("transfer_error", "transfer_ratio") if config.data.source == "sprites" else ()  # right answers are known
    return (*known, *(f"{factor}_from_{code}" for factor in _CODES for code in _CODES))


def _check(config):
    translate = [name for name, family in models.FAMILIES.items() if hasattr(family.model, "translate")]
    if config.model.family not in translate:
        families = " or ".join(translate)
        raise UserError(f"the transfer evaluator is for model.family={families}, not {config.model.family}")


def _check_source(config, source, kept):
    del kept
    _factors(config, of_images(source))


def _factors(config: ConfigDict, source: Images) -> Factors:
    if source.factors is None:
        raise UserError(
            "the transfer evaluator needs images whose class is known, unlike those of "
            f"data.source={config.data.source}"
        )
    return source.factors


EVALUATOR = Evaluator(evaluate, _metrics, check=_check, check_source=_check_source)
