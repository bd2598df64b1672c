"""The input pipeline, and the only place that imports TensorFlow.

`build(config.data)` gives a source; `batches` makes its training stream. TensorFlow is kept off the accelerators.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # the same numbers on every processor, and no notice about it

import tensorflow as tf

from sintrovae_jax.data import sources
from sintrovae_jax.data.densities import DENSITIES
from sintrovae_jax.errors import UserError
from sintrovae_jax.parallel import Shard

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")


def build(data):
    """The source that `config.data.source` names (see `sources`). Raises `UserError` where none fits."""
    if data.source in DENSITIES:
        if data.image_size:
            raise UserError(f"data.source={data.source} is a density of points: set data.image_size=0")
        return sources.Density(data.source)
    if data.source == "digits":
        if data.image_size < 1 or data.image_channels != 1:
            raise UserError("data.source=digits needs data.image_size of 1 or more and data.image_channels=1")
        return sources.digits(data.image_size)
    raise UserError(f"data.source={data.source!r} is none of {', '.join([*DENSITIES, 'digits'])}")


def batches(source, *, seed: int, start: int, stop: int, substeps: int, shard: Shard):
    """Iterates over the dispatches of steps [start, stop), each a dict of numpy arrays

    {'x': [local devices, substeps, per-device batch, *shape], 'index': [local devices, substeps, per-device batch]}

    where `index` (int32) is the example's place in the global batch.
    """
    index = tf.range(shard.start, shard.stop)

    def one_step(step):
        return {"x": source.train(seed, step, shard), "index": index}

    def by_device(batch):
        def split(t):  # [substeps, local batch, ...] -> [devices, substeps, per device, ...]
            shape = [substeps, shard.devices, shard.per_device, *t.shape[2:]]
            return tf.transpose(tf.reshape(t, shape), [1, 0, 2, *range(3, len(shape))])

        return tf.nest.map_structure(split, batch)

    dataset = tf.data.Dataset.range(start, stop).map(one_step, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(substeps, drop_remainder=True).map(by_device).prefetch(2)
    return dataset.as_numpy_iterator()
