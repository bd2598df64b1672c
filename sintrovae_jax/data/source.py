"""The protocol of a source of examples. `data.sources` and other modules implement it; `pipeline.build` chooses one."""

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeGuard

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax.data.identity import Identity
from sintrovae_jax.errors import UserError
from sintrovae_jax.parallel import Shard

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)
Labels = tuple[np.ndarray, np.ndarray]  # the labels of training examples and of test examples


class Factors(NamedTuple):
    """Class and content of images, for datasets in which a class occurs with many contents. Not used in training.

    Both are (classes [N], contents [N]), whole numbers, in the order of the source's `train` and `test`; contents are
    None if they are unknown.
    """

    train: tuple[np.ndarray, np.ndarray | None]
    test: tuple[np.ndarray, np.ndarray | None]


class Source(Protocol):
    """Examples to train on, and others that training never sees: points or images.

    Every batch is a function of (seed, step), so resuming costs nothing.
    """

    @property
    def count(self) -> int | None:
        """The number of training examples; None: infinite."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """{name: reason} of the files that could not be read."""

    @property
    def identity(self) -> Identity | None:
        """The identity of the data, independent of their location; None: the data cannot change."""

    def stream(self, seed: int, start: int, stop: int, shard: Shard, substeps: int = 1) -> "tf.data.Dataset":
        """The batches of the steps [start, stop), `substeps` batches per element.

        An element has this process's part of these batches, one after the other, [substeps × shard's examples, *shape],
        uint8 images or float32.
        """

    def test(self, n: int, seed: int) -> np.ndarray:
        """The first n examples that training never sees, or all if there are fewer. float32 [n, *shape]."""


class Images(Source, Protocol):
    """A source of images."""

    @property
    def fingerprint(self) -> str | None:
        """A text that changes with the images; None: not available."""

    @property
    def labels(self) -> Labels | None:
        """The classes [N] of training images, in the order of `train`, and of test images; None: unknown."""

    @property
    def factors(self) -> Factors | None:
        """Class and content of every image; None: unknown."""

    def train(self, size: int) -> Iterator[np.ndarray]:
        """The training images, each once, not augmented, in an arbitrary order.

        Arrays of at most `size`, uint8, or float32 in [0, 1].
        """

    def at(self, size: int) -> "Images":
        """The source of the same images averaged down to size × size."""


class Labelled(Images, Protocol):
    """A source of images whose classes are known, also during training."""

    @property
    def labels(self) -> Labels:
        """The classes [N] of training images, in the order of `train`, and of test images."""

    def label_stream(self, seed: int, start: int, stop: int, shard: Shard, substeps: int = 1) -> "tf.data.Dataset":
        """The labels of the examples of `stream` with the same arguments: int32 [substeps × shard's examples]."""


def _has_images(source: Source) -> TypeGuard[Images]:
    return hasattr(source, "train")


def of_images(source: Source) -> Images:
    """The same source. Raises `UserError` if its examples are points."""
    if not _has_images(source):
        raise UserError("this needs a data.source of images, not of points")
    return source


def _has_labels(source: Source) -> TypeGuard[Labelled]:
    return hasattr(source, "label_stream") and getattr(source, "labels", None) is not None


def of_labels(source: Source) -> Labelled:
    """The same source. Raises `UserError` if it has no labels for training."""
    if not _has_labels(source):
        raise UserError(
            "model.classes needs labels, which this data.source does not serve: digits and letters do; and an npz "
            "with classes, a TFDS set with them, and a folder whose pictures all lie in one folder per class, if they "
            "fit data.memory_gib"
        )
    return source


def check_labels(config: ConfigDict, source: Source) -> None:
    """Raises `UserError` if `config.model.classes` asks for labels that the source does not have, or if it has others.

    Warns of labels that no training image has.
    """
    classes = config.model.classes
    if not classes:
        return
    train, test = of_labels(source).labels
    low, high = min(train.min(), test.min()), max(train.max(), test.max())
    if low < 0 or high >= classes:
        raise UserError(f"model.classes={classes}, but data.source={config.data.source} has labels {low} to {high}")
    missing = np.setdiff1d(np.arange(classes), train)
    if len(missing):
        log.warning("model.classes=%d: no training image has the label %s", classes, ", ".join(map(str, missing)))


def labels_of_test(config: ConfigDict, source: Source, count: int) -> np.ndarray | None:
    """The labels int32 [count] of the first test images, for conditional networks; None for other networks."""
    return of_labels(source).labels[1][:count].astype(np.int32) if config.model.classes else None
