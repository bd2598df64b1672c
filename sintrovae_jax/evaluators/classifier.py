"""Features that need no downloaded weights, from a small classifier trained on the labels of the training set.

For small images with classes, such as digits. Its seed is fixed and it sees only the training set. It is trained once
for each training set and then kept, so that all models of one dataset are compared with the same features.
"""

import functools
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from sintrovae_jax import cancellation, progress, seeds
from sintrovae_jax.arrays import Variables
from sintrovae_jax.data.source import Images, Labels
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators.features import Extractor, as_stored, stored

log = logging.getLogger(__name__)
_BATCH, _EPOCHS, _LEARNING_RATE = 64, 20, 2e-3
DIMENSIONS = 64
_VERSION = 1  # part of a stored classifier's name: raise it when a change of this code changes what is learnt
_SHIPPED = Path(__file__).with_name("classifiers")  # classifiers in the package, for digits at 8×8 and 16×16


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

    Returns the network and its variables. They depend on the devices and on the number of cores: sums in a different
    order round differently, and training magnifies the differences.
    """
    network = Classifier(classes)
    params = seeds.init(network, seeds.key(0), as_stored(x[:1]))["params"]
    moments = optax.adam(_LEARNING_RATE).init(params)
    steps = list(_batches(len(x)))
    for indices in progress.counted(steps, "steps of the classifier"):
        cancellation.check()
        params, moments = _step(network, params, moments, as_stored(x[indices]), y[indices])
    return network, {"params": params}


def _batches(count: int) -> Iterator[np.ndarray]:
    """The indices of each step's images."""
    order, batch = np.random.default_rng(0), min(_BATCH, count)
    for _ in range(_EPOCHS):
        shuffled = order.permutation(count)
        yield from (shuffled[start : start + batch] for start in range(0, count - batch + 1, batch))


def check(config: ConfigDict, source: Images) -> None:
    """Raises `UserError` if the source has no labels to learn from."""
    _labels(config, source)


def _labels(config: ConfigDict, source: Images) -> Labels:
    if source.labels is None:
        raise UserError(f"eval.features=classifier needs labels to learn: data.source={config.data.source} has none")
    return source.labels


class Trained(NamedTuple):
    """A classifier of the labels `names`, with its accuracy on test images. fingerprint: a hash of its variables."""

    network: Classifier
    variables: Variables
    names: np.ndarray
    accuracy: float
    fingerprint: str

    def named(self, x: np.ndarray, size: int) -> np.ndarray:
        """The labels [N] of images [N, H, W, C] in [0, 1], rounded as in a PNG file. size: images per chunk."""
        return self.names[_in_chunks(self.network, self.variables, x, size)[1].argmax(1)]


def build(config: ConfigDict, source: Images) -> Extractor:
    """The classifier of a source, as an extractor with the metric classifier_accuracy, on the test images."""
    network, variables, names, accuracy, fingerprint = trained(config, source)
    log.info("features: a classifier of %d classes, right on %.1f %% of test images", len(names), 100 * accuracy)
    metrics = {"classifier_accuracy": accuracy}
    return Extractor("classifier", fingerprint, functools.partial(_features, network), variables, metrics)


def trained(config: ConfigDict, source: Images) -> Trained:
    """The classifier of a source with labels. Raises `UserError` for a source without labels.

    Comes from the package or the folder `eval.cache`; otherwise it is trained and kept in that folder. Stored
    classifiers are named by a hash of their training data and settings.
    """
    y_train, y_test = _labels(config, source)
    x = np.concatenate(list(source.train(1024)))
    names, y = np.unique(y_train, return_inverse=True)
    network, size = Classifier(len(names)), config.eval.batch_size

    def train() -> dict[str, np.ndarray]:
        log.info("training a classifier of %d classes on %d images, for its features", len(names), len(x))
        return traverse_util.flatten_dict(_scaled(x, y, len(names), size), sep="/")

    name = f"classifier-{_digest(x, y)}"
    folder = _SHIPPED if (_SHIPPED / f"{name}.npz").exists() else config.eval.cache
    variables = stored(str(folder), name, train, functools.partial(_checked, network, x[:1]))
    fingerprint = hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(variables))).hexdigest()
    without = Trained(network, variables, names, 0.0, fingerprint)
    accuracy = float((without.named(source.test(len(y_test), 0), size) == y_test).mean())
    return without._replace(accuracy=accuracy)


def _digest(x: np.ndarray, y: np.ndarray) -> str:
    """A hash of everything that determines a classifier, except for rounding: its training data and its settings."""
    how = (_VERSION, _BATCH, _EPOCHS, _LEARNING_RATE, DIMENSIONS, x.shape, x.dtype)
    digest = hashlib.sha256("\n".join(map(str, how)).encode())
    digest.update(np.ascontiguousarray(x).data)
    digest.update(y.astype("<i8").data)
    return digest.hexdigest()[:32]


def _scaled(x: np.ndarray, y: np.ndarray, classes: int, size: int) -> Variables:
    """The variables of `fit`, and one scale for all features that makes their training variances 1 on average."""
    network, variables = fit(x, y, classes)
    features, _ = _in_chunks(network, variables, x, size)
    return variables | {"scale": 1 / np.sqrt(features.var(0).mean())}


def _checked(network: Classifier, x: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Variables:
    """Stored arrays as variables. Raises `ValueError` if they do not fit this network or are not finite."""
    variables = traverse_util.unflatten_dict(dict(arrays), sep="/")
    params = jax.eval_shape(lambda: seeds.init(network, seeds.key(0), as_stored(x)))["params"]
    wanted = {"params": params, "scale": jax.ShapeDtypeStruct((), np.float32)}
    described = jax.tree.map(lambda a: (a.shape, a.dtype), (variables, wanted))
    if described[0] != described[1] or not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("not the variables of this classifier")
    return variables


def _in_chunks(network: Classifier, variables: Variables, x: np.ndarray, size: int) -> list[np.ndarray]:
    """Features [N, 64] and logits [N, classes] of any number of images, as numpy arrays."""
    both = [
        _apply(network, variables["params"], as_stored(x[start : start + size])) for start in range(0, len(x), size)
    ]
    return [np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*both, strict=True)]
