"""The input pipeline: distributions, and that a batch is a function of (seed, step) alone."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sintrovae_jax import config as configs
from sintrovae_jax.data import examples, folder, pipeline, sources
from sintrovae_jax.data.densities import DENSITIES
from sintrovae_jax.parallel import Shard


def settings(source, **values):
    """`config.data` with these values."""
    out = configs.read_recipe("configs/digits.py").data
    out.update({"source": source} | values)
    return out


SETTINGS = {name: settings(name, image_size=0) for name in DENSITIES}
SETTINGS["digits"] = settings("digits", image_size=8)
SETTINGS["augmented"] = settings("digits", image_size=8, translate=2, flip=True)
SETTINGS["sprites"] = settings("sprites", image_size=8, image_channels=3)


def test_every_name_of_a_source_is_built_by_one_of_the_tables():
    assert DENSITIES.keys() == examples.HALF_RANGES.keys()
    built = [*DENSITIES, *pipeline._EMBEDDED, *pipeline._PLACES, *pipeline._CLOUDS]
    assert sorted(name.partition(":")[0] for name in examples.NAMES) == sorted(built)


def sample(name, n=200_000):
    return DENSITIES[name](n, tf.constant([3, 4], tf.int64)).numpy().astype(np.float64)


def test_gaussians8():
    points = sample("gaussians8")
    angle = np.arctan2(points[:, 1], points[:, 0]) / (np.pi / 4)
    mode = np.round(angle).astype(int) % 8
    counts = np.bincount(mode, minlength=8)
    assert (np.abs(counts - 25_000) < 6 * np.sqrt(25_000)).all()
    centres = 1.414 * np.stack([np.cos(mode * np.pi / 4), np.sin(mode * np.pi / 4)], 1)
    np.testing.assert_allclose((points - centres).std(0), 0.0141, rtol=0.02)
    np.testing.assert_allclose((points - centres).mean(0), 0, atol=2e-4)


def test_rings():
    points = sample("rings")
    radius = np.linalg.norm(points, axis=1)
    ring = np.clip(np.round(radius / 0.75), 1, 4)
    counts = np.bincount(ring.astype(int))[1:]
    assert (np.abs(counts - 50_000) < 6 * np.sqrt(50_000)).all()
    # Across the ring the noise is 0.08; along it, it hardly matters.
    np.testing.assert_allclose((radius - 0.75 * ring)[ring > 1].std(), 0.08, rtol=0.02)
    angle = np.arctan2(points[:, 1], points[:, 0])
    assert np.abs(np.histogram(angle, 20)[0] - 10_000).max() < 600


def test_checkerboard():
    points = sample("checkerboard")
    assert np.abs(points).max() <= 4
    column, row = np.floor(points / 2).astype(int).T
    # x2 = U - 2·{0, 1} + (floor(x1) mod 2), doubled: dark squares are those where row + column is even.
    assert ((row + column) % 2 == 0).all()
    counts = np.unique(np.stack([column, row], 1), axis=0, return_counts=True)[1]
    assert len(counts) == 8
    assert (np.abs(counts - 25_000) < 6 * np.sqrt(25_000)).all()


def test_spirals():
    points = sample("spirals")
    # Against the definition, drawn independently in numpy: compare 2D histograms.
    rng = np.random.default_rng(0)
    u, v, w = rng.random((3, len(points)))
    n = 3 * np.pi * np.sqrt(u)
    arm = np.stack([-np.cos(n) * n + 0.5 * v, np.sin(n) * n + 0.5 * w], 1) / 3
    wanted = arm * rng.choice([-1, 1], (len(points), 1)) + 0.1 * rng.normal(size=points.shape)
    edges = np.linspace(-4, 4, 21)
    a, b = (np.histogram2d(*p.T, [edges, edges])[0] for p in (points, wanted))
    busy = a + b > 20
    assert np.abs((a - b)[busy] / np.sqrt((a + b)[busy])).max() < 5
    assert (a + b)[busy].sum() > 0.98 * 2 * len(points)


def test_gaussians25():
    points = sample("gaussians25")
    mode = np.round(points).astype(int)
    assert np.abs(mode).max() == 2
    counts = np.bincount((mode + 2) @ [5, 1], minlength=25)
    assert (np.abs(counts - 8_000) < 6 * np.sqrt(8_000)).all()
    np.testing.assert_allclose((points - mode).std(0), 0.025, rtol=0.02)
    np.testing.assert_allclose((points - mode).mean(0), 0, atol=4e-4)


def test_moons():
    points = sample("moons")
    # Turned by 180° if that brings it nearer to the upper half circle, a point is 2 away from the centre of that.
    distance = [np.abs(np.linalg.norm(p - [-1, -0.5], axis=1) - 2) + 9 * (p[:, 1] < -0.9) for p in (points, -points)]
    turned = distance[1] < distance[0]
    assert abs(turned.sum() - 100_000) < 6 * np.sqrt(50_000)
    x, y = (np.where(turned[:, None], -points, points) - [-1, -0.5]).T
    np.testing.assert_allclose((np.hypot(x, y) - 2).std(), 0.1, rtol=0.03)
    angle = np.arctan2(y, x)
    inner = np.histogram(angle, 8, (0.2, np.pi - 0.2))[0]
    assert np.abs(inner - inner.mean()).max() < 0.03 * inner.mean()


@functools.cache
def built(name):
    return pipeline.build(SETTINGS[name])


def dispatches(name, batch_size=12, devices=1, process=0, processes=1, start=0, stop=12, substeps=3, seed=5):
    source = built(name)
    per_device = batch_size // devices // processes
    shard = Shard(batch_size, process * devices * per_device, devices, per_device)
    return list(
        pipeline.batches(source, SETTINGS[name], seed=seed, start=start, stop=stop, substeps=substeps, shard=shard)
    )


def flat(batches, key="x"):
    """[steps, examples of this process, ...]"""
    x = np.concatenate([b[key] for b in batches], axis=1)  # [devices, steps, per device, ...]
    return np.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])


@pytest.mark.parametrize("name", SETTINGS)
def test_batches_do_not_depend_on_devices_processes_dispatch_or_start(name):
    whole = flat(dispatches(name))
    assert whole.shape[:2] == (12, 12)
    np.testing.assert_array_equal(whole, flat(dispatches(name, devices=4)))
    np.testing.assert_array_equal(whole[6:], flat(dispatches(name, start=6, substeps=1)))
    halves = [dispatches(name, devices=2, process=p, processes=2) for p in range(2)]
    np.testing.assert_array_equal(whole, np.concatenate([flat(half) for half in halves], axis=1))
    places = [flat(half, "index") for half in halves]
    np.testing.assert_array_equal(np.concatenate(places, axis=1), np.tile(np.arange(12), (12, 1)))
    assert (whole != flat(dispatches(name, seed=6))).any()
    assert (whole[0] != whole[1]).any()


def numbered(count):
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return sources.Arrays(images, images)


def test_every_epoch_visits_every_image_once_in_a_new_order():
    count, batch = 30, 12
    shard = Shard(batch, 0, 1, batch)
    stream = pipeline.batches(numbered(count), SETTINGS["digits"], seed=1, start=0, stop=25, substeps=1, shard=shard)
    order = np.concatenate([b["x"].ravel() for b in stream]).astype(int).reshape(-1, count)
    assert len(order) == 10
    for epoch in order:
        assert sorted(epoch) == list(range(count))
    assert len({tuple(epoch) for epoch in order}) == 10
    # No place of the epoch prefers an image: correlation of order and place stays small.
    assert abs(np.corrcoef(np.tile(np.arange(count), 10), order.ravel())[0, 1]) < 0.2


def seen(source, batch, processes, steps, start=0) -> np.ndarray:
    """Which images, each all of its own colour, so many processes see together: [steps, batch]."""
    parts = []
    for p in range(processes):
        shard = Shard(batch, p * batch // processes, 1, batch // processes)
        steps_of = {"start": start, "stop": start + steps, "substeps": 1, "shard": shard}
        parts.append(flat(list(pipeline.batches(source, SETTINGS["digits"], seed=5, **steps_of))))
    x = np.concatenate(parts, axis=1)
    return (x if x.dtype == np.uint8 else (255 * x).round().astype(np.uint8)).reshape(steps, batch, -1)[:, :, 0]


@pytest.fixture(params=["npz", "folder", "folder read as training goes"])
def of_thirty(request, tmp_path):
    """A source of 30 training images."""
    images = np.tile(np.arange(32, dtype=np.uint8)[:, None, None], (1, 8, 8))
    if request.param == "npz":
        np.savez(tmp_path / "images.npz", x_train=images[:30], x_test=images[30:])
        return pipeline.build(settings(f"npz:{tmp_path}/images.npz", image_size=8))
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    gib = 1e-9 if "read" in request.param else 1.0
    source = pipeline.build(settings(f"folder:{tmp_path}", image_size=8, memory_gib=gib, test_fraction=0.05))
    assert isinstance(source, folder.Files if "read" in request.param else sources.Arrays)
    return source


def test_any_number_of_processes_sees_each_image_once_an_epoch(of_thirty):
    """Batches of 8 do not divide the set: they end one epoch and begin the next."""
    count, batch = of_thirty.count, 8
    steps = 3 * count // 2
    orders = {p: seen(of_thirty, batch, p, steps) for p in (1, 4)}
    everything = sorted(set(orders[1].ravel()))
    assert len(everything) == count
    for order in orders.values():
        whole = order.ravel()[: order.size // count * count].reshape(-1, count)
        assert len(whole) >= 11
        assert all(sorted(epoch) == everything for epoch in whole)
    # So it does when the processes change on the way.
    parts = [seen(of_thirty, batch, p, 5, start) for p, start in ((4, 0), (1, 5), (2, 10))]
    np.testing.assert_array_equal(np.concatenate(parts), orders[1][:15])


def test_digits_are_the_real_ones_and_the_halves_do_not_overlap():
    source = pipeline.build(SETTINGS["digits"])
    test = source.test(10_000, seed=0)
    assert test.shape == (297, 8, 8, 1)
    assert test.dtype == np.float32
    train = np.asarray(source._train) / 255
    assert train.shape == (1500, 8, 8, 1)
    from sklearn.datasets import load_digits

    def rows(x):
        return sorted(map(tuple, (x.reshape(len(x), -1) * 16).round().astype(int)))

    assert rows(np.concatenate([train, test])) == rows(load_digits().images / 16)
    larger = pipeline.build(settings("digits", image_size=16)).test(5, seed=0)
    assert larger.shape == (5, 16, 16, 1)
    assert 0 <= larger.min() <= larger.max() <= 1


def test_test_points_are_not_training_points():
    source = pipeline.build(SETTINGS["rings"])
    train = np.concatenate([flat(dispatches("rings", stop=60, seed=5))]).reshape(-1, 2)
    test = source.test(500, 5)
    assert not set(map(tuple, train)) & set(map(tuple, test))
    np.testing.assert_array_equal(test, source.test(500, 5))
