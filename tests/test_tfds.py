"""Sets of TensorFlow Datasets: in memory, streamed, and prepared through interruptions and full disks."""

import importlib
import resource
import signal
import socket
import sys
import time

import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import QUICK, TINY, here, run
from forks import Process
from test_data import flat, settings
from test_train import SMALL, final_state

from sintrovae_jax.data import pipeline, sources
from sintrovae_jax.data import tfds as ours
from sintrovae_jax.errors import Interrupted, Unavailable, UserError
from sintrovae_jax.parallel import Shard

MODULE = '''
"""Sets whose pictures are each all one colour, their number."""

import os
import time
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

SIDE = 16


def on_example(i):
    """What happens before each example is made; children are told to be slow by their environment."""
    if "STARTED" in os.environ:
        Path(os.environ["STARTED"]).touch()
        time.sleep(1)


class Numbered(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": range(60), "test": range(200, 212)}

    def _info(self):
        picture = tfds.features.Image(shape=(None, None, 3))
        label = tfds.features.ClassLabel(num_classes=256)
        features = tfds.features.FeaturesDict({"image": picture, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(numbers) for name, numbers in self.SPLITS.items()}

    def _generate_examples(self, numbers):
        for i in numbers:
            on_example(i)
            yield i, {"image": np.full((SIDE, SIDE, 3), i, np.uint8), "label": i}


class Unreachable(Numbered):
    """Its files are on a server that does not answer."""

    def _split_generators(self, dl_manager):
        address = os.environ.get("SERVER", "127.0.0.1:1")
        return {"train": self._generate_examples(dl_manager.download(f"http://{address}/pictures"))}


class OnlyTrain(Numbered):
    SPLITS = {"train": range(40)}


class WithValidation(Numbered):
    SPLITS = {"train": range(20), "validation": range(20, 25)}


class NoTrain(Numbered):
    SPLITS = {"part": range(5)}


class NoPicture(Numbered):
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"number": np.int64}))

    def _generate_examples(self, numbers):
        for i in numbers:
            yield i, {"number": i}
'''
PREPARED = ("numbered", "only_train", "with_validation", "no_train", "no_picture")
COMMAND = [
    *("--config", "configs/digits.py", *TINY),
    *("--config.data.source=tfds:numbered", "--config.data.image_size=16", "--config.data.image_channels=3"),
    *("--config.data.download=True", "--config.model.family=mlp", "--config.train.batch_size=12"),
    *("--config.train.steps=10", "--config.checkpoint.every=10"),
]


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """The builders, in a file that child processes can import too."""
    place = tmp_path_factory.mktemp("builders")
    (place / "numbered_pictures.py").write_text(MODULE)
    sys.path.insert(0, str(place))
    yield importlib.import_module("numbered_pictures")
    sys.path.remove(str(place))


@pytest.fixture(scope="module")
def prepared(module, tmp_path_factory):
    """A folder in which the sets are prepared, each split in three files."""
    place = tmp_path_factory.mktemp("tfds")
    for name in PREPARED:
        config = tfds.download.DownloadConfig(num_shards=3, try_download_gcs=False)
        tfds.builder(name, data_dir=str(place)).download_and_prepare(download_config=config)
    assert len(list(place.glob("numbered/1.0.0/*train.tfrecord*"))) == 3
    return place


def asks(place, name="numbered", **values):
    values = {"image_size": 16, "image_channels": 3, "dir": str(place)} | values
    return settings(f"tfds:{name}", **values)


def streamed(place, name="numbered", **values):
    source = pipeline.build(asks(place, name, memory_gib=1e-9, **values))
    assert isinstance(source, ours.Stream)
    return source


@pytest.fixture(scope="module")
def stream(prepared):
    """One for all tests, whose processes are started once."""
    return streamed(prepared)


def numbers(source, batch_size=4, start=0, stop=30, seed=5, substeps=1, devices=1, process=0, processes=1, size=16):
    """Which examples stand in the batches [steps, examples of this process]; by default of two epochs of 60."""
    per_device = batch_size // devices // processes
    shard = Shard(batch_size, process * devices * per_device, devices, per_device)
    options = {"seed": seed, "start": start, "stop": stop, "substeps": substeps, "shard": shard}
    x = flat(list(pipeline.batches(source, settings("digits", image_size=16), **options)))
    assert x.dtype == np.uint8
    assert x.shape[2:] == (size, size, 3)
    assert (x == x[:, :, :1, :1, :1]).all()
    return x[:, :, 0, 0, 0]


def held_out(source, n=1000):
    x = source.test(n, 0)
    assert x.dtype == np.float32
    return sorted((255 * x[:, 0, 0, 0]).round().astype(int))


def one_line(values) -> str:
    """The one line of the `UserError` that building this source ends with."""
    with pytest.raises(UserError) as caught:
        pipeline.build(values)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# In memory


def test_in_memory_every_epoch_visits_each_once_and_the_test_split_is_held_out(prepared):
    source = pipeline.build(asks(prepared))
    assert isinstance(source, sources.Arrays)
    epochs = numbers(source).reshape(2, 60)
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(60))
    assert (epochs[0] != epochs[1]).any()
    assert held_out(source) == list(range(200, 212))
    assert len(held_out(source, 5)) == 5


@pytest.mark.parametrize("memory_gib", [1, 1e-9])
def test_without_a_test_split_a_part_is_held_out(prepared, memory_gib):
    source = pipeline.build(asks(prepared, "only_train", test_fraction=0.25, memory_gib=memory_gib))
    assert len(held_out(source)) == 10
    train = numbers(source, batch_size=10, stop=3)
    assert sorted([*train.ravel(), *held_out(source)]) == list(range(40))


@pytest.mark.parametrize("memory_gib", [1, 1e-9])
def test_a_validation_split_serves_where_there_is_no_test_split(prepared, memory_gib):
    source = pipeline.build(asks(prepared, "with_validation", memory_gib=memory_gib))
    assert held_out(source) == list(range(20, 25))
    assert sorted(numbers(source, batch_size=10, stop=2).ravel()) == list(range(20))


def test_pictures_are_resized_and_turned_grey(prepared):
    source = pipeline.build(asks(prepared, image_size=8, image_channels=1))
    assert source.test(3, 0).shape == (3, 8, 8, 1)
    assert held_out(source) == list(range(200, 212))


# Streamed


def test_a_stream_gives_the_same_batches_whatever_shares_them(prepared, stream):
    whole = numbers(stream)
    np.testing.assert_array_equal(whole, numbers(stream, devices=4))
    halves = [numbers(stream, devices=2, process=p, processes=2) for p in range(2)]
    np.testing.assert_array_equal(whole, np.concatenate(halves, axis=1))
    np.testing.assert_array_equal(whole[:9], numbers(stream, stop=9, substeps=3))
    np.testing.assert_array_equal(whole, numbers(streamed(prepared)))


def test_however_often_a_set_is_streamed_the_same_processes_read_it(prepared, started):
    source = streamed(prepared)
    for seed in range(3):
        numbers(source, stop=5, seed=seed)
    assert 1 <= len(started) <= source._readers.count


@pytest.mark.soak
def test_a_stream_gives_the_same_batches_wherever_it_starts(stream):
    whole = numbers(stream, stop=39)
    for start in (15, 21):  # an epoch is 15 steps
        np.testing.assert_array_equal(whole[start:], numbers(stream, start=start, stop=39))
        some = numbers(stream, start=start, stop=start + 18, substeps=3)
        np.testing.assert_array_equal(whole[start : start + 18], some)


def test_a_stream_visits_each_once_an_epoch_in_an_order_of_its_own(stream):
    epochs = numbers(stream, stop=60).reshape(4, 60)
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert (epochs[0] != numbers(stream, stop=15, seed=6).ravel()).any()
    np.testing.assert_array_equal(epochs[2], numbers(stream, start=30, stop=45).ravel())


def test_a_stream_whose_batch_does_not_divide_the_set_leaves_out_others_every_epoch(stream):
    epochs = numbers(stream, batch_size=8, stop=7 * 12).reshape(12, 56)  # of 60
    assert all(len(set(epoch)) == 56 for epoch in epochs)
    assert set(epochs.ravel()) == set(range(60))
    assert len({frozenset(epoch) for epoch in epochs}) > 6


@pytest.mark.soak
def test_any_number_of_processes_sees_as_much_of_a_stream(stream):
    """Batches of 8 leave out 4 of 60 an epoch: 56 once each, over the epochs all; also where processes change."""
    last = 7 * 12
    together = []
    for count, start, stop in ((4, 0, 24), (1, 24, 31), (2, 31, last)):
        each = [numbers(stream, 8, start, stop, process=p, processes=count) for p in range(count)]
        together.append(np.concatenate(each, axis=1))
    epochs = np.concatenate(together).reshape(12, 56)
    assert all(len(set(epoch)) == 56 for epoch in epochs)
    assert set(epochs.ravel()) == set(range(60))


def test_a_stream_shuffles_even_through_the_smallest_buffer(prepared):
    orders = numbers(streamed(prepared, shuffle_buffer=1)).reshape(2, 60)
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(60))
    assert (orders[0] != orders[1]).any()


def test_a_stream_holds_out_the_test_split(stream):
    assert held_out(stream) == list(range(200, 212))
    assert len(held_out(stream, 5)) == 5
    assert not set(numbers(stream, stop=15).ravel()) & set(range(200, 212))


@pytest.mark.parametrize("memory_gib", [1.0, 1e-9])
def test_training_pictures_come_once_each(prepared, memory_gib):
    source = pipeline.build(asks(prepared, memory_gib=memory_gib))
    pieces = list(source.train(7))
    assert {piece.shape[1:] for piece in pieces} == {(16, 16, 3)}
    assert max(map(len, pieces)) <= 7
    seen = np.concatenate(pieces)[:, 0, 0, 0]
    whole = numbers(source, stop=15).ravel()
    assert sorted(seen) == sorted(set(whole))
    smaller = pipeline.build(asks(prepared, memory_gib=memory_gib, image_size=8))
    if memory_gib == 1:
        np.testing.assert_array_equal(source.labels[0], seen)
        np.testing.assert_array_equal(source.labels[1], (255 * source.test(100, 0)[:, 0, 0, 0]).round())
    assert source.fingerprint not in (smaller.fingerprint, source.at(8).fingerprint)


@pytest.mark.parametrize("room", [1, 80 * 8 * 8 * 3])  # for none of the sizes; for 8 pixels, but not 16
def test_a_stream_at_a_smaller_size_has_the_same_pictures(prepared, room):
    source = pipeline.build(asks(prepared, memory_gib=room / 2**30))
    assert isinstance(source, ours.Stream)
    for size in (8, 4):
        smaller = source.at(size)
        batches = [numbers(smaller, stop=stop, size=size) for stop in (15, 30)]
        np.testing.assert_array_equal(batches[0], batches[1][:15])
        assert sorted(batches[0].ravel()) == list(range(60))
        assert held_out(smaller) == list(range(200, 212))


def test_a_batch_larger_than_the_set_is_one_line(stream):
    with pytest.raises(UserError, match=r"^a batch of 64 is more than the examples of numbered$"):
        numbers(stream, batch_size=64)


# What cannot be used


def test_a_set_without_pictures_or_train_split_is_one_line(prepared):
    assert "no `image` feature" in one_line(asks(prepared, "no_picture"))
    assert "has no train split, but part" in one_line(asks(prepared, "no_train"))


def test_a_set_that_is_not_prepared_is_one_line(module, tmp_path, caplog):
    says = one_line(asks(tmp_path))
    assert "numbered is not prepared" in says
    assert f"`tfds build numbered --data_dir={tmp_path}`" in says
    assert "--config.data.download=True" in says
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []  # nor a line of another library's


@pytest.mark.parametrize("download", [False, True])
def test_a_set_that_tfds_cannot_fetch_says_what_to_put_where(tmp_path, download):
    says = one_line(asks(tmp_path, "celeb_a_hq/256", download=download))
    assert "data256x256.tar" in says
    assert f" {tmp_path}/downloads/manual" in says
    assert f"`tfds build celeb_a_hq/256 --data_dir={tmp_path}`" in says
    assert "--config.data.source=folder:PATH" in says


@pytest.mark.parametrize(
    "name", ["nonesuch", "celeb_a_hq/999", "numbered/other", "numbered:9.0.0", "two words", "huggingface:x/y"]
)
def test_an_unknown_set_is_one_line(module, tmp_path, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it would try for long without a network
    assert f"data.source=tfds:{name} cannot be found: " in one_line(asks(tmp_path, name))


def test_a_set_whose_files_must_be_put_there_by_hand_is_one_line(tmp_path):
    says = one_line(asks(tmp_path, "imagenet2012", download=True))
    assert "imagenet2012 cannot be prepared" in says
    assert "ILSVRC2012_img_train.tar" in says


# Preparing


def rests(place):
    """What a preparation that did not end left behind."""
    return [p for p in place.rglob("*") if "incomplete" in p.name or p.suffix in (".tfrecord", ".tmp")]


def test_a_signal_ends_the_preparation_and_nothing_of_it_is_kept(module, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(module, "on_example", lambda i: i == 5 and signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"^preparing the TFDS set numbered; nothing of it is kept$") as caught:
        pipeline.build(asks(tmp_path, download=True))
    assert caught.value.exit_code == 143
    assert rests(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is handler
    monkeypatch.undo()
    assert held_out(pipeline.build(asks(tmp_path, download=True))) == list(range(200, 212))


def test_a_signal_while_a_picture_is_encoded_is_one_line_too(module, tmp_path, monkeypatch):
    """TFDS adds the example to whatever is raised there, and most of the time it is there."""
    monkeypatch.setattr(module, "SIDE", 2500)
    monkeypatch.setattr(module, "on_example", lambda i: signal.setitimer(signal.ITIMER_REAL, 0.05) if i == 1 else None)
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(Interrupted, match=r"^preparing the TFDS set numbered; nothing of it is kept$") as caught:
            pipeline.build(asks(tmp_path, download=True))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught.value.exit_code == 130
    assert rests(tmp_path) == []


@pytest.mark.soak
def test_without_a_network_it_takes_seconds_to_say_so(module, tmp_path, caplog):
    since = time.monotonic()
    says = r"^the TFDS set unreachable cannot be prepared in .*Connection refused"
    with pytest.raises(Unavailable, match=says) as caught:
        pipeline.build(asks(tmp_path, "unreachable", download=True))
    assert time.monotonic() - since < 30
    assert len(str(caught.value).splitlines()) == 1
    assert "Retrying" not in caplog.text


@pytest.mark.parametrize("room", [0, 2000])
def test_a_full_disk_is_one_line_and_the_next_run_prepares(module, tmp_path, room):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(Unavailable, match=r"^the TFDS set numbered cannot be prepared in .*File too large"):
            pipeline.build(asks(tmp_path, download=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert rests(tmp_path) == []
    assert held_out(pipeline.build(asks(tmp_path, download=True))) == list(range(200, 212))


def child(module, place, *args, **env) -> Process:
    where = [f"--config.data.dir={place}", "--workdir", str(place / "run")]
    return Process([*COMMAND, *where, *args], first=module.__file__, **env)


@pytest.mark.soak
def test_a_signal_does_not_wait_for_a_server_that_does_not_answer(module, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(200)
        address = "{}:{}".format(*server.getsockname())
        process = child(module, tmp_path, "--config.data.source=tfds:unreachable", SERVER=address)
        with server.accept()[0]:
            time.sleep(1)  # it asks, and waits
            process.send_signal(signal.SIGTERM)
            out = process.communicate(timeout=30)[0]
    assert process.returncode == 143
    assert out.strip().splitlines()[-1] == "stopped: preparing the TFDS set unreachable; nothing of it is kept"
    assert "Traceback" not in out


def test_a_signal_ends_the_command_line_with_one_line(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "on_example", lambda i: i == 5 and signal.raise_signal(signal.SIGTERM))
    out, code = here([*COMMAND, f"--config.data.dir={tmp_path}", "--workdir", str(tmp_path / "run")])
    assert code == 143
    assert out.strip().splitlines()[-1].endswith("preparing the TFDS set numbered; nothing of it is kept")
    assert "Traceback" not in out
    assert rests(tmp_path) == []


@pytest.mark.soak
def test_a_preparation_that_is_killed_can_be_done_again(module, tmp_path):
    started = tmp_path / "started"
    process = child(module, tmp_path, STARTED=str(started))
    while not started.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert rests(tmp_path)
    assert held_out(pipeline.build(asks(tmp_path, download=True))) == list(range(200, 212))


@pytest.mark.soak
def test_a_run_on_a_stream_resumes_exactly(prepared, tmp_path):
    """Augmented, through the command line: whole, and in two parts."""
    args = [*TINY, QUICK, *SMALL, "--config.model.family=mlp", "--config.data.source=tfds:numbered"]
    args += [f"--config.data.dir={prepared}", "--config.train.batch_size=8", "--config.objective.name=vae"]
    args += ["--config.data.memory_gib=1e-9", "--config.data.image_channels=3", "--config.data.hue=0.5"]
    run("digits", tmp_path / "whole", *args, "--config.train.steps=40")
    run("digits", tmp_path / "parts", *args, "--config.train.steps=20")
    run("digits", tmp_path / "parts", *args, "--config.train.steps=40")
    whole, parts = (final_state(tmp_path / name) for name in ("whole", "parts"))
    assert int(whole.step) == 40
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_smallnorbs_class_is_the_toy_and_its_content_the_view(tmp_path):
    """The real builder reads made-up pictures: brightness tells the toy's number, and where it is seen from."""
    features = tfds.builder("smallnorb", data_dir=tmp_path).info.features

    def examples(numbers):
        for i in numbers:
            picture = np.full((96, 96, 1), i, np.uint8)
            view = {"label_azimuth": i % 18, "label_elevation": i % 9, "label_lighting": i % 6}
            yield {"image": picture, "image2": picture, "instance": i % 10, "label_category": i % 5} | view

    signature = {name: tf.TensorSpec(f.shape, f.dtype) for name, f in features.items()}
    splits = {"train": range(40), "test": range(100, 120)}
    tfds.dataset_builders.store_as_tfds_dataset(
        "smallnorb",
        "2.0.0",
        data_dir=tmp_path,
        features=features,
        split_datasets={
            name: tf.data.Dataset.from_generator(lambda n=n: examples(n), output_signature=signature)
            for name, n in splits.items()
        },
    )
    source = pipeline.build(asks(tmp_path, "smallnorb", image_channels=1))
    for x, (classes, contents) in (
        (np.concatenate(list(source.train(7))), source.factors.train),
        (255 * source.test(99, 0), source.factors.test),
    ):
        i = x[:, 0, 0, 0].round().astype(int)
        np.testing.assert_array_equal(classes, i % 5 * 10 + i % 10)
        np.testing.assert_array_equal(contents, (i % 18 * 9 + i % 9) * 6 + i % 6)
