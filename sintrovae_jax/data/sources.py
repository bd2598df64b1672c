"""Sources of examples that need no file format of their own: densities, and images held in memory.

`data.source` defines what a source is.
"""

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
import tensorflow as tf
from PIL import Image

from sintrovae_jax import npy
from sintrovae_jax.data import failures, images
from sintrovae_jax.data.densities import DENSITIES
from sintrovae_jax.data.identity import Identity, of_arrays
from sintrovae_jax.data.images import Format
from sintrovae_jax.data.source import Factors, Images, Labels
from sintrovae_jax.errors import UserError, printable
from sintrovae_jax.files import is_remote
from sintrovae_jax.parallel import Shard, first_line

log = logging.getLogger(__name__)
# Keeps evaluation's stream of fresh points apart from training's, whose stateless seeds are (seed, step).
_TEST_STREAM = 2**62
_ALIGNMENT = 64  # bytes
AT_ONCE = 256  # images that are averaged down at once


def as_float(x: np.ndarray) -> np.ndarray:
    """Bytes as float32 in [0, 1]; other types are unchanged."""
    return x.astype(np.float32) / 255 if x.dtype == np.uint8 else x


def shrink(x: np.ndarray | tf.Tensor, size: int) -> tf.Tensor:
    """Averages images [..., H, H, C] down to [..., size, size, C]; bytes stay bytes. Takes numpy arrays or tensors."""
    factor = x.shape[-2] // size
    if factor == 1:
        return x
    shape = (-1 if x.ndim == 4 else 1, size, factor, size, factor, x.shape[-1])
    floats = tf.cast(tf.reshape(x, shape), tf.float32)
    means = tf.reduce_mean(floats, (2, 4))
    means = means if x.ndim == 4 else means[0]
    return tf.cast(tf.round(means), tf.uint8) if x.dtype == np.uint8 else means


class Pyramid:
    """The smaller sizes of a source that is read from disk.

    The sizes that fit in memory are read once, as bytes, when training first streams one of them.

    read: size -> `Arrays` of all images of the source at that size.
    """

    def __init__(self, source: Images, form: Format, count: int, memory_bytes: float, read: Callable[[int], "Arrays"]):
        self._source, self._form, self._count, self._read = source, form, count, read
        self._arrays: Arrays | None = None
        sizes = (form.size >> i for i in range(1, form.size.bit_length()))
        self._largest = next((s for s in sizes if count * s * s * form.channels <= memory_bytes), 0)

    def at(self, size: int) -> Images:
        if size == self._form.size:
            return self._source
        return Shrunk(self._source, size, self._cached if size <= self._largest else None)

    def _cached(self) -> "Arrays":
        if self._arrays is None:
            log.info("reading %d images at %d pixels, for the levels up to there", self._count, self._largest)
            self._arrays = self._read(self._largest)
        return self._arrays


class Shrunk:
    """Another source's images, averaged down on the fly; or taken from `cached()`, which holds a smaller size in
    memory, if given.
    """

    def __init__(self, source: Images, size: int, cached: Callable[[], "Arrays"] | None = None):
        self._source, self._size, self._cached, self.skipped = source, size, cached, source.skipped
        self.labels, self.factors, self.count = source.labels, source.factors, source.count
        self.identity = source.identity

    @property
    def fingerprint(self) -> str:
        return f"{self._source.fingerprint} at {self._size}"

    def train(self, size: int) -> Iterator[np.ndarray]:
        return (shrink(x, self._size).numpy() for x in self._source.train(size))

    def stream(self, seed: int, start: int, stop: int, shard: Shard, substeps: int = 1) -> tf.data.Dataset:
        if self._cached:
            return self._cached().at(self._size).stream(seed, start, stop, shard, substeps)
        stream = self._source.stream(seed, start, stop, shard, substeps)
        return stream.map(lambda x: shrink(x, self._size), num_parallel_calls=tf.data.AUTOTUNE)

    def test(self, n: int, seed: int) -> np.ndarray:
        return shrink(self._source.test(n, seed), self._size).numpy()

    def at(self, size: int) -> Images:
        return self._source.at(size)


def dispatches(start: int, stop: int, substeps: int) -> tf.data.Dataset:
    """The steps [start, stop), `substeps` at a time; an incomplete dispatch is dropped."""
    return tf.data.Dataset.range(start, stop).batch(substeps, drop_remainder=True)


def joined(steps: tf.data.Dataset, substeps: int) -> tf.data.Dataset:
    """Elements [part, ...], one per step -> [substeps × part, ...], in order; an incomplete dispatch is dropped."""
    return steps.batch(substeps, drop_remainder=True).map(lambda x: tf.reshape(x, [-1, *x.shape[2:]]))


def chosen(seed: int, steps: tf.Tensor, count: int, shard: Shard) -> tf.Tensor:
    """The indices, below `count`, of this process's part of the steps' batches, one after the other. An epoch visits
    each index once, in a new order.

    A pseudo-random permutation is computed index by index, so there is no shuffle buffer and nothing to restore.
    """
    first = tf.reshape(steps, [-1, 1]) * shard.batch_size
    position = tf.reshape(first + tf.range(shard.start, shard.stop, dtype=tf.int64), [-1])
    epoch, place = position // count, position % count
    high, low = (tf.fill(tf.shape(epoch), tf.constant(part, tf.int64)) for part in divmod(seed, 2**31))  # int32 each
    seeds = tf.cast(tf.stack([low, tf.math.floormod(epoch, 2**31), high], 1), tf.int32)
    return tf.random_index_shuffle(place, seeds, tf.fill(tf.shape(place), tf.constant(count - 1, tf.int64)))


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty array of bytes, aligned so that TensorFlow uses its memory as a tensor instead of copying it."""
    size = math.prod(shape)
    x = np.empty(size + _ALIGNMENT, np.uint8)
    first = -x.ctypes.data % _ALIGNMENT
    return x[first : first + size].reshape(shape)


def decoded(
    dataset: tf.data.Dataset,
    read: Callable[[np.ndarray, np.ndarray], object],
    count: int,
    shape: tuple[int, ...],
    at_once: int,
) -> tf.data.Dataset:
    """Elements of `count` picture identifiers -> their pictures, each element uint8 [count, *shape].

    read: (identifiers, array to fill). at_once: the number of pictures that it reads at once.
    """

    @failures.noted
    def all_of(items):
        x = _aligned((count, *shape))
        read(items, x)
        return x

    def one_call(items):
        # One call for all pictures: a call per picture would cost half as much as decoding it.
        return tf.ensure_shape(tf.numpy_function(all_of, [items], tf.uint8), (count, *shape))

    return dataset.map(one_call, num_parallel_calls=1 + math.ceil(at_once / count))


class Density:
    """A 2D density, with fresh draws for every batch."""

    count = identity = None
    skipped: Mapping[str, str] = MappingProxyType({})

    def __init__(self, name: str):
        self._sample = DENSITIES[name]

    def stream(self, seed: int, start: int, stop: int, shard: Shard, substeps: int = 1) -> tf.data.Dataset:
        def one_step(step):
            # The whole global batch is drawn, then sliced, so that it does not depend on the number of processes.
            whole = self._sample(shard.batch_size, tf.stack([tf.cast(seed, tf.int64), step]))
            return whole[shard.start : shard.stop]

        steps = tf.data.Dataset.range(start, stop).map(one_step, num_parallel_calls=tf.data.AUTOTUNE)
        return joined(steps, substeps)

    def test(self, n: int, seed: int) -> np.ndarray:
        return self._sample(n, tf.constant([seed, _TEST_STREAM], tf.int64)).numpy()


class Arrays:
    """Images held in memory, visited in a new seeded order every epoch, each exactly once.

    train, test: uint8, or float32 in [0, 1], [N, H, W, C]. classes, contents: pairs (of train, of
    test) of whole numbers [N], if they are known.
    """

    def __init__(
        self,
        train: np.ndarray,
        test: np.ndarray,
        skipped: Mapping[str, str] | None = None,
        classes: Labels | None = None,
        contents: Labels | None = None,
        identity: Identity | None = None,
    ):
        self._train, self._test, self.skipped = tf.constant(train), test, skipped or {}
        self.identity = identity
        self._classes, self._contents = classes, contents
        self._smaller, self.count = {train.shape[1]: self}, len(train)
        self._order = np.random.default_rng(0).permutation(len(train))

    @property
    def labels(self) -> Labels | None:
        return self._classes and (self._classes[0][self._order], self._classes[1])

    @property
    def factors(self) -> Factors | None:
        contents = (self._contents[0][self._order], self._contents[1]) if self._contents else (None, None)
        return None if self.labels is None else Factors(*zip(self.labels, contents, strict=True))

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for x in (self._view, self._test):
            digest.update(f"{x.shape}{x.dtype}".encode())
            digest.update(np.ascontiguousarray(x).data)
        return digest.hexdigest()

    def train(self, size: int) -> Iterator[np.ndarray]:
        return (self._view[self._order[start : start + size]] for start in range(0, len(self._order), size))

    @property
    def _view(self) -> np.ndarray:
        return np.asarray(memoryview(self._train))  # `.numpy()` would copy the whole set

    def stream(self, seed: int, start: int, stop: int, shard: Shard, substeps: int = 1) -> tf.data.Dataset:
        def one_dispatch(steps):
            return tf.gather(self._train, chosen(seed, steps, int(self._train.shape[0]), shard))

        return dispatches(start, stop, substeps).map(one_dispatch, num_parallel_calls=tf.data.AUTOTUNE)

    def label_stream(self, seed: int, start: int, stop: int, shard: Shard, substeps: int = 1) -> tf.data.Dataset:
        assert self._classes is not None
        labels = tf.constant(self._classes[0], tf.int32)

        def one_dispatch(steps):
            return tf.gather(labels, chosen(seed, steps, len(labels), shard))

        return dispatches(start, stop, substeps).map(one_dispatch)

    def test(self, n: int, seed: int) -> np.ndarray:
        del seed  # always the same first n
        return as_float(self._test[:n])

    def at(self, size: int) -> "Arrays":
        if size not in self._smaller:
            train, test = (
                np.concatenate([shrink(part, size) for part in np.array_split(x, -(-len(x) // AT_ONCE))])
                for x in (self._view, self._test)
            )
            self._smaller[size] = Arrays(train, test, self.skipped, self._classes, self._contents)
        return self._smaller[size]


def labelled(
    x: np.ndarray,
    test: np.ndarray,
    classes: np.ndarray,
    contents: np.ndarray | None = None,
    identity: Identity | None = None,
) -> Arrays:
    """The source of images [N, H, W, C] with known classes and contents [N]; images with `test` [N] are held out.

    Test images are in a fixed random order, so that the first ones have many classes.
    """
    held_out = np.random.default_rng(0).permutation(np.flatnonzero(test))

    def split(numbers: np.ndarray) -> Labels:
        return numbers[~test], numbers[held_out]

    train, held = split(x)
    contents_of = None if contents is None else split(contents)
    return Arrays(train, held, classes=split(classes), contents=contents_of, identity=identity)


def digits(form: Format) -> Arrays:
    """scikit-learn's handwritten digits, resized (bicubic) from 8×8: 1,500 to train and 297 to test.

    The dataset is ordered by writer; the split is a fixed shuffle of it, the same for every seed and size.
    """
    from sklearn.datasets import load_digits

    known = load_digits()
    return _of_8x8(known.images, known.target, form)


def letters(form: Format) -> Arrays:
    """Letters, drawn (`data.letters`) and resized like the digits: also 1,500 to train and 297 to test."""
    from sintrovae_jax.data import letters as drawn  # matplotlib

    return _of_8x8(*drawn.draw(1797), form)


def _of_8x8(pictures: np.ndarray, classes: np.ndarray, form: Format) -> Arrays:
    """The source of pictures [1797, 8, 8] with 17 grey levels, and their classes."""
    small = np.round(pictures * (255 / 16)).astype(np.uint8)
    x = np.stack([images.fit(Image.fromarray(picture), form) for picture in small])
    train, test = _split(x, 1500)
    return Arrays(train, test, classes=_split(classes, 1500))


# The names of the arrays that are read from an .npz, which differ between sources: images to train and test with, and
# their classes.
_NAMES = (
    ("x_train", "x_test", "y_train", "y_test"),
    ("train", "test", "y_train", "y_test"),
    ("train_images", "test_images", "train_labels", "test_labels"),  # MedMNIST's
    ("train_images", "val_images", "train_labels", "val_labels"),
)


def npz(path: str, form: Format, test_fraction: float, memory_bytes: float) -> Arrays:
    """The images of an .npz file: `x_train` and `x_test`, `train` and `test`, or MedMNIST's `train_images` and
    `test_images`; or a single array, also from an .npy file, of which `test_fraction` (a fixed choice) is held out.
    Their classes [N] or [N, 1] are read from `y_train` and `y_test`, or `train_labels` and `test_labels`, if present.

    Images are [N, H, W] or [N, H, W, 1 or 3]: uint8, resized to the format; or floats in [0, 1] of exactly its shape.
    Warns of arrays that are not used. Raises `UserError` for anything else, and for more than `memory_bytes` of images.
    """
    arrays = read_arrays(f"data.source=npz:{path}", path, memory_bytes, functools.partial(_used, path))
    names = _known(arrays)
    image_names = names[:2] if names else list(arrays)
    count = sum(math.prod(arrays[name].shape[:1]) for name in image_names)
    refuse_large(f"data.source=npz:{path}: its images take", count * math.prod(form.shape), memory_bytes)
    parts = [_images(arrays[name], f"{name} of {path}", form) for name in image_names]
    if names:
        x, x_test = parts
        return Arrays(x, x_test, classes=_classes(arrays, (x, x_test), names[2:], path), identity=of_arrays(arrays))
    (x,) = parts
    train, test = _split(x, len(x) - max(1, round(test_fraction * len(x))))
    return Arrays(train, test, identity=of_arrays(arrays))


def read_arrays(
    what: str, path: str, memory_bytes: float, choose: Callable[[Sequence[str]], Sequence[str]]
) -> dict[str, np.ndarray]:
    """Reads a file, local or remote, by `npy.load`. what: its name in messages. Raises `UserError` if unreadable."""
    try:
        with opened(path) as file:
            return npy.load(file, choose, lambda size: refuse_large(f"{what}: its arrays take", size, memory_bytes))
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise all kinds of errors for other files
        raise UserError(f"{what} cannot be read: {first_line(error)}") from None


def refuse_large(what: str, size: int, memory_bytes: float) -> None:
    """Raises `UserError` for more bytes than may be held in memory. what: the message's beginning."""
    if size > memory_bytes:
        gib, most = size / 2**30, memory_bytes / 2**30
        raise UserError(f"{what} {gib:.3g} GiB, more than data.memory_gib={most:g}: raise it, if the memory is there")


def opened(path: str) -> BinaryIO:
    """Opens a file to read, local or remote. TensorFlow refuses local paths that are not UTF-8."""
    return tf.io.gfile.GFile(path, "rb") if is_remote(path) else open(path, "rb")


def _known(names: Container[str]) -> tuple[str, ...]:
    """The first of `_NAMES` whose arrays of images are both among these names; () if there is none."""
    return next((known for known in _NAMES if known[0] in names and known[1] in names), ())


def _used(path: str, names: Sequence[str]) -> list[str]:
    """The names of the arrays to read. Warns of the others. Raises `UserError` if the choice is unclear."""
    used = [name for name in _known(names) if name in names]
    if not names:
        raise UserError(f"{path} has no array in it")
    if not used and len(names) > 1 and npy.ALONE not in names:
        arrays = f"{path} has the arrays {', '.join(names)}"
        raise UserError(f"{arrays}: name them x_train and x_test, or one of them {npy.ALONE}")
    used = used or [npy.ALONE if npy.ALONE in names else names[0]]
    if unused := [name for name in names if name not in used]:
        log.warning("not used of %s: %s", path, printable(", ".join(unused)))
    return used


def _classes(
    arrays: dict[str, np.ndarray], x: tuple[np.ndarray, np.ndarray], names: Sequence[str], path: str
) -> Labels | None:
    """The classes [N] of both parts' images `x`, from the arrays [N] or [N, 1] with these names."""
    if any(name not in arrays for name in names):
        return None
    for name, images_of in zip(names, x, strict=True):
        y, count = arrays[name], len(images_of)
        if y.shape not in ((count,), (count, 1)) or not np.issubdtype(y.dtype, np.integer):
            log.warning("%s of %s are not used: no whole numbers, one for each image", " and ".join(names), path)
            return None
    y, y_test = (arrays[name].reshape(-1) for name in names)
    return y, y_test


def _images(x: np.ndarray, what: str, form: Format) -> np.ndarray:
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[-1] not in (1, 3) or not x.size:
        raise UserError(f"{what} has shape {x.shape}: images are [N, height, width] or [N, height, width, 1 or 3]")
    if x.dtype == np.uint8:
        if x.shape[1:] == form.shape:
            return x
        x = x[..., 0] if x.shape[-1] == 1 else x
        return np.stack([images.fit(Image.fromarray(picture), form) for picture in x])
    if not np.issubdtype(x.dtype, np.floating) or not (x.min() >= 0 and x.max() <= 1):
        reach = f" from {x.min()} to {x.max()}" if np.issubdtype(x.dtype, np.number) else ""
        raise UserError(f"{what} is {x.dtype}{reach}: images are uint8, or floats in [0, 1]")
    if x.shape[1:] != form.shape:
        raise UserError(f"{what} has images of shape {x.shape[1:]}, not {form.shape}: floats are not resized")
    return x.astype(np.float32)


def _split(x: np.ndarray, train: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `train` of a fixed shuffle, and the rest; a single image serves as both."""
    x = x[np.random.default_rng(0).permutation(len(x))]
    return (x[:train], x[train:]) if train else (x, x)
