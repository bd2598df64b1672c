"""Image datasets of TensorFlow Datasets (TFDS): in memory if they fit, otherwise streamed."""

import contextlib
import logging
import signal
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import jax
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from ml_collections import ConfigDict

from sintrovae_jax import files, progress
from sintrovae_jax.data.failures import reading
from sintrovae_jax.data.identity import Identity
from sintrovae_jax.data.images import Format
from sintrovae_jax.data.readers import Readers
from sintrovae_jax.data.source import Images, Labels
from sintrovae_jax.data.sources import Arrays, Pyramid, as_float, decoded, joined, shrink
from sintrovae_jax.errors import Interrupted, Unavailable, UserError
from sintrovae_jax.parallel import Shard, first_line

log = logging.getLogger(__name__)
_READ = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False, skip_prefetch=True)  # one file after another
_RETRIES = 5  # of a download, in up to 6 seconds
_AT_ONCE = 256  # encoded pictures held at once while all are read
# Datasets whose files TFDS cannot download, and the files that it needs.
_BY_HAND = {"celeb_a_hq": "the tar files of CelebA-HQ (data256x256.tar for celeb_a_hq/256)"}
# Datasets whose class and content are given by several features.
_FACTORS = {
    "smallnorb": (("label_category", "instance"), ("label_azimuth", "label_elevation", "label_lighting")),
}


def build(name: str, data: ConfigDict, form: Format) -> Images:
    """The source of a TFDS set with an `image` feature, NAME or NAME/CONFIG. Its `test` split is held out, or
    `test_fraction` of `train` if it has no test split.

    Raises `UserError` for a set that does not exist, has no images, or is not prepared (and says how to prepare it).
    """
    builder = _prepared(name, data)
    features = builder.info.features
    if not (isinstance(features, dict | tfds.features.FeaturesDict) and "image" in features) or not isinstance(
        features["image"], tfds.features.Image
    ):
        raise UserError(f"the TFDS set {name} has no `image` feature that holds pictures")
    train, test = _splits(builder, data.test_fraction)
    info = builder.info
    sizes = {f"{info.full_name} {split}": [info.splits[split].num_examples] for split in (train, test)}
    identity = Identity("splits", sizes)
    if builder.info.splits[train].num_examples * np.prod(form.shape) <= data.memory_gib * 2**30:

        def numbered(names: tuple[str, ...]) -> Labels:
            return _numbered(builder, train, names), _numbered(builder, test, names)

        log.info("reading %s and %s of %s", train, test, builder.info.full_name)
        readers = Readers(form)
        x, x_test = (_all(builder, split, form, readers) for split in (train, test))
        if builder.name in _FACTORS:
            classes, contents = map(numbered, _FACTORS[builder.name])
            return Arrays(x, x_test, classes=classes, contents=contents, identity=identity)
        labelled = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
        return Arrays(x, x_test, classes=numbered(("label",)) if labelled else None, identity=identity)
    return Stream(builder, train, test, form, data.shuffle_buffer, data.memory_gib * 2**30, identity)


def _prepared(name: str, data: ConfigDict) -> tfds.core.DatasetBuilder:
    """The builder of a set, which is prepared first if it is missing and `data.download` is set."""
    level = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)  # otherwise it warns of a missing dataset_info.json
    try:
        builder = tfds.builder(name, **({"data_dir": files.resolved(data.dir)} if data.dir else {}))
        prepared = builder.is_prepared()
    except Exception as error:
        # No such set or version, or a package that it needs is missing; community datasets may raise anything.
        if not isinstance(error, ValueError | AssertionError | ImportError) and ":" not in name:
            raise
        raise UserError(f"data.source=tfds:{name} cannot be found: {first_line(error)}") from None
    finally:
        absl_logging.set_verbosity(level)
    if prepared:
        return builder
    missing = f"the TFDS set {name} is not prepared in {builder.data_dir}"
    option = f" --data_dir={data.dir}" if data.dir else ""
    if builder.name in _BY_HAND:
        raise UserError(
            f"{missing}, and TFDS cannot fetch its files: put {_BY_HAND[builder.name]} into "
            f"{builder.data_dir_root}/downloads/manual and run `tfds build {name}{option}`, "
            "or use a folder of its pictures: --config.data.source=folder:PATH"
        )
    if not data.download:
        raise UserError(f"{missing}: add --config.data.download=True, or run `tfds build {name}{option}`")
    if jax.process_count() > 1:  # their downloads would conflict
        raise UserError(f"{missing}, and this run has several processes: run `tfds build {name}{option}` first")
    log.info("downloading and preparing %s in %s", name, builder.data_dir)
    with _few_retries(), _interruptible(f"preparing the TFDS set {name}"):
        try:
            builder.download_and_prepare()
        except Interrupted:
            raise
        except Exception as error:  # no network, a full disk, missing manual files: TFDS raises all kinds
            reason = " ".join(str(error).split()) or repr(error)
            kind = Unavailable if isinstance(error, OSError) or files.storage_reason(error) else UserError
            raise kind(f"the TFDS set {name} cannot be prepared in {builder.data_dir}: {reason}") from error
    return builder


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Gives a download a few seconds to start. TFDS gives it minutes, and urllib3 warns of every retry."""
    from tensorflow_datasets.core.download import downloader  # not part of `tfds` until it is needed

    warnings = logging.getLogger("urllib3.connectionpool")
    before = downloader.MAX_RETRIES, warnings.level
    downloader.MAX_RETRIES = _RETRIES
    warnings.setLevel(logging.ERROR)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before[0]
        warnings.setLevel(before[1])


@contextlib.contextmanager
def _interruptible(what: str) -> Iterator[None]:
    """Turns SIGTERM, SIGINT and SIGHUP, if not ignored, into an exception, so that TFDS removes incomplete files."""
    came = []

    def handle(signum, _):
        came.append(signum)
        raise Interrupted(what, signum)

    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    before = {s: signal.signal(s, handle) for s in signals}
    try:
        yield
    except Exception:
        if came:  # TFDS extends the message of the exception, or raises another kind
            raise Interrupted(f"{what}; nothing of it is kept", came[0]) from None
        raise
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _splits(builder: tfds.core.DatasetBuilder, test_fraction: float) -> tuple[str, str]:
    """TFDS's names for the training split and the held-out split."""
    splits = builder.info.splits
    if "train" not in splits:
        raise UserError(f"the TFDS set {builder.name} has no train split, but {', '.join(splits)}")
    held_out = next((name for name in ("test", "validation") if name in splits), None)
    if held_out:
        return "train", held_out
    count = splits["train"].num_examples
    first = count - max(1, round(test_fraction * count))
    return f"train[:{first}]", f"train[{first}:]"


def _encoded(builder: tfds.core.DatasetBuilder, split: str) -> tf.data.Dataset:
    """The bytes of a split's picture files, in their order on disk."""
    decoders = tfds.decode.PartialDecoding({"image": True}, decoders={"image": tfds.decode.SkipDecoding()})
    return builder.as_dataset(split=split, decoders=decoders, read_config=_READ).map(lambda example: example["image"])


def _all(
    builder: tfds.core.DatasetBuilder, split: str, form: Format, readers: Readers, limit: int = -1, size: int = 0
) -> np.ndarray:
    """A split's pictures, or the first `limit`, as one array; averaged down to `size`, if given."""
    parts = _encoded(builder, split).take(limit).batch(_AT_ONCE).as_numpy_iterator()
    counted = progress.counted(parts, "pictures", each=_AT_ONCE)
    with reading():
        pictures = (_decoded(builder, part, form, readers) for part in counted)
        return np.concatenate([shrink(x, size).numpy() if size else x for x in pictures])


def _numbered(builder: tfds.core.DatasetBuilder, split: str, features: tuple[str, ...]) -> np.ndarray:
    """For each example of a split, in order, one number for the combined values of these label features."""
    only = tfds.decode.PartialDecoding(dict.fromkeys(features, True))
    with reading():
        labels = list(builder.as_dataset(split=split, decoders=only, read_config=_READ).as_numpy_iterator())
    columns = [np.array([label[name] for label in labels], np.int64) for name in features]
    return np.ravel_multi_index(columns, [builder.info.features[name].num_classes for name in features])


def _decoded(builder: tfds.core.DatasetBuilder, files: np.ndarray, form: Format, readers: Readers) -> np.ndarray:
    """The pictures in files [N], uint8 [N, *form.shape]. Raises `UserError` if one cannot be read."""
    x = np.empty((len(files), *form.shape), np.uint8)
    _read(builder, files, x, readers)
    return x


def _read(builder: tfds.core.DatasetBuilder, files: np.ndarray, x: np.ndarray, readers: Readers) -> None:
    for problem in readers.read(files.tolist(), x).values():
        raise UserError(f"{builder.info.full_name} holds a picture that cannot be read: {problem}")


class Stream:
    """A dataset that is read from disk during training.

    Example i of every batch comes from lane i, one of batch_size equal parts of the dataset, shuffled through a buffer
    by (seed, epoch, lane). So a process reads only its own lanes, and the batches do not depend on the number of
    processes. An epoch has as many steps as the shortest lane has examples. Resuming skips encoded bytes without
    decoding them.
    """

    skipped: Mapping[str, str] = MappingProxyType({})
    labels, factors = None, None

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        train: str,
        test: str,
        form: Format,
        shuffle_buffer: int,
        memory_bytes: float = 0.0,
        identity: Identity | None = None,
    ):
        self.identity = identity
        self._builder, self._train, self._test = builder, train, test
        self._form, self._shuffle_buffer, self._readers = form, shuffle_buffer, Readers(form)
        count = sum(builder.info.splits[split].num_examples for split in (train, test))
        self.count = builder.info.splits[train].num_examples

        def read(size):
            x, x_test = (_all(builder, split, form, self._readers, size=size) for split in (train, test))
            return Arrays(x, x_test)

        self.at = Pyramid(self, form, count, memory_bytes, read).at
        self.fingerprint = f"{builder.info.full_name} {self.count} {train} {test} {form}"

    def train(self, size: int) -> Iterator[np.ndarray]:
        with reading():
            for part in _encoded(self._builder, self._train).batch(size).as_numpy_iterator():
                yield _decoded(self._builder, part, self._form, self._readers)

    def stream(self, seed: int, start: int, stop: int, shard: Shard, substeps: int = 1) -> tf.data.Dataset:
        steps = self.count // shard.batch_size  # of an epoch
        if not steps:
            raise UserError(f"a batch of {shard.batch_size} is more than the examples of {self._builder.name}")
        mine = tfds.even_splits(self._train, shard.batch_size)[shard.start : shard.stop]
        lanes = [_encoded(self._builder, split) for split in mine]
        buffer = max(2, self._shuffle_buffer // shard.batch_size)

        def one_epoch(epoch):
            stateless = tf.stack([tf.cast(seed, tf.int64), epoch])
            seeds = tf.random.stateless_uniform([shard.batch_size], stateless, None, None, tf.int64)[shard.start :]
            skip = tf.where(epoch == start // steps, tf.cast(start % steps, tf.int64), 0)
            orders = [
                lane.shuffle(buffer, seeds[i], reshuffle_each_iteration=False).take(steps).skip(skip)
                for i, lane in enumerate(lanes)
            ]
            return tf.data.Dataset.zip(tuple(orders)).map(lambda *examples: tf.stack(examples))

        batches = tf.data.Dataset.range(start // steps, -(-stop // steps)).flat_map(one_epoch).take(stop - start)

        def read(files: np.ndarray, x: np.ndarray) -> None:
            _read(self._builder, files, x, self._readers)

        return decoded(joined(batches, substeps), read, substeps * len(lanes), self._form.shape, self._readers.count)

    def test(self, n: int, seed: int) -> np.ndarray:
        del seed  # always the same first n
        return as_float(_all(self._builder, self._test, self._form, self._readers, n))
