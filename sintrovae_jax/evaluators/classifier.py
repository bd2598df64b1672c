"""Features without weights to download, from a small classifier trained on the labels of the training set.

For small images with classes, such as digits. Its seed is fixed and it sees only the training set, so that all models
of one set are compared with the same features.
"""

import functools
import hashlib
import logging

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from sintrovae_jax import cancellation, parallel, progress
from sintrovae_jax.arrays import Variables
from sintrovae_jax.data.source import Images
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators.features import Extractor, as_stored

log = logging.getLogger(__name__)
_BATCH, _EPOCHS, _LEARNING_RATE = 64, 20, 2e-3
DIMENSIONS = 64


class Classifier(nn.Module):
    """Images [B, H, W, C] in [0, 1] -> (features [B, 64], logits [B, classes])."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        for width in (16, 32):
            for _ in range(2):
                x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        features = nn.relu(nn.Dense(DIMENSIONS)(x.reshape(len(x), -1)))
        return features, nn.Dense(self.classes)(features)


@functools.partial(jax.jit, static_argnums=0)
def _apply(network, params, x):
    return network.apply({"params": params}, x)


@functools.partial(jax.jit, static_argnums=0)
def _features(network, variables, x):
    return _apply(network, variables["params"], x)[0] * variables["scale"]


@functools.partial(jax.jit, static_argnums=0)
def _step(network, params, moments, x, y):
    def loss(params):
        logits = network.apply({"params": params}, x)[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    updates, moments = optax.adam(_LEARNING_RATE).update(jax.grad(loss)(params), moments)
    return optax.apply_updates(params, updates), moments


def fit(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[Classifier, Variables]:
    """Trains on images [N, H, W, C], bytes or in [0, 1], and labels [N] below `classes`.

    Returns the network and its variables.
    """
    network = Classifier(classes)
    params = network.init(parallel.seed_key(0), as_stored(x[:1]))["params"]
    moments, order = optax.adam(_LEARNING_RATE).init(params), np.random.default_rng(0)
    batch = min(_BATCH, len(x))
    for _ in progress.counted(range(_EPOCHS), "epochs of the classifier"):
        cancellation.check()
        shuffled = order.permutation(len(x))
        for start in range(0, len(x) - batch + 1, batch):
            indices = shuffled[start : start + batch]
            params, moments = _step(network, params, moments, as_stored(x[indices]), y[indices])
    return network, {"params": params}


def check(config: ConfigDict, source: Images) -> None:
    """Raises `UserError` if the source has no labels to learn from."""
    if source.labels is None:
        raise UserError(f"eval.features=classifier needs labels to learn: data.source={config.data.source} has none")


def build(config: ConfigDict, source: Images) -> Extractor:
    """Trains the classifier of a source that has labels. Raises `UserError` for one that has none.

    Its metrics: classifier_accuracy, on the test images.
    """
    check(config, source)
    return _train(np.concatenate(list(source.train(1024))), source, config.eval.batch_size)


def _train(x, source, size):
    y_train, y_test = source.labels
    names = np.unique(y_train)
    log.info("training a classifier of %d classes, for features", len(names))
    network, variables = fit(x, np.searchsorted(names, y_train), len(names))
    # One scale for all features, so that their variances in the training set are 1 on average.
    features, _ = _in_chunks(network, variables, x, size)
    variables["scale"] = 1 / np.sqrt(features.var(0).mean())
    _, logits = _in_chunks(network, variables, source.test(len(y_test), 0), size)
    accuracy = float((names[logits.argmax(1)] == y_test).mean())
    log.info("features: a classifier of %d classes, right on %.1f %% of test images", len(names), 100 * accuracy)

    variables = jax.tree.map(np.asarray, variables)
    digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(variables)))
    apply, metrics = functools.partial(_features, network), {"classifier_accuracy": accuracy}
    return Extractor("classifier", digest.hexdigest(), apply, variables, metrics)


def _in_chunks(network, variables, x, size):
    """Features [N, 64] and logits [N, classes] of images of any number, as numpy arrays."""
    both = [
        _apply(network, variables["params"], as_stored(x[start : start + size])) for start in range(0, len(x), size)
    ]
    return [np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*both, strict=True)]
