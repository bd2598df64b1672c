"""The input pipeline.

`build(config.data)` returns a source; `batches` makes its training stream. TensorFlow is kept off the accelerators.
"""

import os
import weakref
from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax.data.source import Images, Source, of_labels

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # the same numbers on every processor, and no notice about it

import tensorflow as tf

from sintrovae_jax import files
from sintrovae_jax.data import augment, cars3d, clouds, examples, failures, folder, images, shapes, sources, sprites
from sintrovae_jax.errors import UserError
from sintrovae_jax.parallel import Shard

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")
_EMBEDDED: dict[str, Callable[[images.Format], Images]] = {
    "digits": sources.digits,
    "letters": sources.letters,
    "sprites": sprites.Sprites,
}


def _tfds(name: str, data: ConfigDict, form: images.Format) -> Images:
    from sintrovae_jax.data import tfds  # slow to import

    return tfds.build(name, data, form)


_PLACES: dict[str, Callable[[str, ConfigDict, images.Format], Images]] = {
    "folder": lambda path, data, form: folder.build(path, form, data.test_fraction, data.memory_gib * 2**30),
    "npz": lambda path, data, form: sources.npz(path, form, data.test_fraction, data.memory_gib * 2**30),
    "tfds": _tfds,
    "cars3d": lambda path, data, form: cars3d.build(path, form, data.memory_gib * 2**30),
    "kth": lambda path, data, form: folder.by_class(path, form, data.test_fraction),
}
_CLOUDS: dict[str, Callable[[str, ConfigDict], Source]] = {
    "shapes": lambda place, data: shapes.build(data.points, data.radius),
    "clouds": lambda path, data: clouds.build(
        path, data.points, data.radius, data.test_fraction, data.memory_gib * 2**30
    ),
}


def build(data: ConfigDict) -> Source:
    """The source that `config.data.source` names (see `source`). Raises `UserError` if there is none."""
    kind, _, place = data.source.partition(":")
    what = examples.of(data).kind
    if what == "points":
        return sources.Density(data.source)
    if what == "clouds" and (place or kind not in examples.PATHS):
        return _CLOUDS[kind](files.resolved(place) if place else "", data)
    form = images.read_format(data)
    if data.source in _EMBEDDED:
        return _EMBEDDED[data.source](form)
    if kind in _PLACES and place:
        return _PLACES[kind](files.resolved(place) if kind in examples.PATHS else place, data, form)
    raise UserError(f"data.source={data.source!r} is none of {', '.join(examples.NAMES)}")


def batches(
    source: Source,
    data: ConfigDict,
    *,
    seed: int,
    start: int,
    stop: int,
    substeps: int,
    shard: Shard,
    labels: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over the dispatches of the steps [start, stop), each a dict of numpy arrays

        {'x': [local devices, substeps, per-device batch, *shape], 'index': [local devices, substeps, per-device batch]}

    where `index` (int32) is the example's position in the global batch. data: `config.data`, for its augmentation.
    labels: also 'labels', int32, with the shape of `index`. The source must have them (`source.check_labels`).

    The global batch is a function of the seed and the step, and does not depend on the number of processes. Together,
    the processes see every training example exactly once per epoch. If the number of examples is no multiple of the
    batch size, one batch spans the end of an epoch and the start of the next. Exceptions: an epoch of a TFDS set that
    is streamed from disk has only whole batches, and leaves out a different rest every time; a picture of a folder that
    can no longer be read is replaced by the next, which is then seen twice; and if the batch size of networks that grow
    changes with the level, the new level starts in the middle of an epoch. Densities have no epochs.

    Raises `Unavailable` if the examples cannot be read any more.
    """
    augmented = augment.from_config(data)

    def by_device(t):  # [substeps × local batch, ...] -> [devices, substeps, per device, ...]
        shape = [shard.devices, shard.per_device, *t.shape[1:]]
        if shard.devices == 1:  # no copy
            return tf.reshape(t, [1, substeps, *shape[1:]])
        return tf.transpose(tf.reshape(t, [substeps, *shape]), [1, 0, *range(2, len(shape) + 1)])

    index = by_device(tf.tile(tf.range(shard.start, shard.stop), [substeps]))

    def one_dispatch(steps, x, *y):
        x = augmented(x, seed, steps, shard) if augmented else x
        batch = {"x": by_device(x), "index": index}
        return batch | {"labels": by_device(y[0])} if labels else batch

    span = (seed, start, stop, shard, substeps)
    with failures.noting() as errors:
        streams = [source.stream(*span), *([of_labels(source).label_stream(*span)] if labels else [])]
    dataset = tf.data.Dataset.zip((sources.dispatches(start, stop, substeps), *streams))
    return _Iterator(dataset.map(one_dispatch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2), errors)


class _Iterator:
    """The elements of a dataset as numpy arrays. errors: the list of `failures.noting`.

    May be unfinished when Python exits: if TensorFlow's own iterator is destroyed last, it waits forever for Python
    code that can no longer run.
    """

    def __init__(self, dataset: tf.data.Dataset, errors: list[Exception]):
        self._errors = errors
        self._held = [dataset.as_numpy_iterator()]
        weakref.finalize(self, self._held.clear)  # also at exit, before the interpreter shuts down

    def __iter__(self) -> "_Iterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        with failures.reading(self._errors):
            return next(self._held[0])
