"""Point clouds: shapes, files, rotation, and what the evaluator of clouds computes, against brute force."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf

from sintrovae_jax import config
from sintrovae_jax.data import augment, clouds, pipeline, shapes
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import clouds as scores
from sintrovae_jax.parallel import Shard

needs_trimesh = pytest.mark.skipif(importlib.util.find_spec("trimesh") is None, reason="the extra `clouds`")


# --- shapes -----------------------------------------------------------------------------------------------------------


def rng():
    return np.random.default_rng(0)


def test_points_lie_on_the_surfaces():
    n = 500
    x = np.abs(shapes.box(1.0, 2.0, 3.0).sample(rng(), n)) / [0.5, 1, 1.5]
    np.testing.assert_allclose(x.max(1), 1)
    x, y, z = shapes.cylinder(0.5, 2.0).sample(rng(), n).T
    np.testing.assert_allclose(np.maximum(np.hypot(x, z) / 0.5, np.abs(y)), 1)
    x, y, z = shapes.cone(0.5, 2.0).sample(rng(), n).T
    assert (np.isclose(y, -1) | np.isclose(np.hypot(x, z), 0.5 * (1 - y) / 2)).all() and (y <= 1).all()
    x, y, z = shapes.torus(0.5, 0.2).sample(rng(), n).T
    np.testing.assert_allclose((np.hypot(x, z) - 0.5) ** 2 + y**2, 0.2**2)


def test_points_are_uniform_by_area():
    n = 40_000
    x = np.abs(shapes.box(1.0, 2.0, 4.0).sample(rng(), n)) / [0.5, 1, 2]
    np.testing.assert_allclose((x > 1 - 1e-9).mean(0), np.array([8, 4, 2]) / 14, atol=0.01)
    y = shapes.cylinder(0.5, 2.0).sample(rng(), n)[:, 1]
    assert np.mean(np.abs(y) < 1 - 1e-9) == pytest.approx(2 / 2.5, abs=0.01)  # side 2π, ends π/2
    x, y, z = shapes.cone(3.0, 4.0).sample(rng(), n).T
    side = y > -2 + 1e-9
    assert side.mean() == pytest.approx(5 / 8, abs=0.01)  # πrl and πr²
    assert np.mean(y[side] > 0) == pytest.approx(1 / 4, abs=0.01)  # half as high, a quarter of the area
    x, y, z = shapes.torus(0.5, 0.2).sample(rng(), n).T
    outer = np.hypot(x, z) > 0.5
    assert outer.mean() == pytest.approx(0.5 + 0.4 / np.pi, abs=0.01)  # the integral of 1 + 0.4·cos over half a turn
    parts = [shapes.box(1, 1, 1), shapes.box(1, 1, 1, (9, 0, 0)), shapes.box(2, 2, 2, (20, 0, 0))]
    far = shapes.sample(parts, n, rng())[:, 0]
    np.testing.assert_allclose([np.mean(far < 5), np.mean(far > 15)], [1 / 6, 4 / 6], atol=0.01)


def test_every_class_stands_upright_in_its_sphere():
    classes = np.arange(len(shapes.CLASSES)).repeat(2)
    factors = np.stack([np.zeros(shapes.FACTORS), np.ones(shapes.FACTORS)] * len(shapes.CLASSES))
    x = shapes.draw(classes, factors, 400, 0.5, seed=3)
    assert x.shape == (len(classes), 400, 3) and x.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1).max(1), 0.5, rtol=1e-5)
    np.testing.assert_allclose(x.min(1), -x.max(1), atol=1e-6)
    np.testing.assert_array_equal(x, shapes.draw(classes, factors, 400, 0.5, seed=3))
    chair = x[classes == list(shapes.CLASSES).index("chair")]
    assert (np.sum(chair[:, :, 1] < 0, 1) > 20).all()  # it has legs


def test_the_source(monkeypatch):
    monkeypatch.setattr(shapes, "TRAIN", 30)
    monkeypatch.setattr(shapes, "TEST", 12)
    settings = config.default()
    settings.data.source, settings.data.points = "shapes", 16
    source = pipeline.build(settings.data)
    assert source.count == 30 and source.test(100, 0).shape == (12, 16, 3)
    assert [len(labels) for labels in source.labels] == [30, 12]
    (epoch,) = source.stream(0, 0, 1, Shard(30, 0, 1, 30))
    assert len(np.unique(epoch.numpy().reshape(30, -1), axis=0)) == 30


def test_rotation_is_about_the_vertical_axis_and_the_same_on_any_number_of_processes():
    x = rng().normal(size=(8, 5, 3)).astype(np.float32)
    quarter = augment.rotate(tf.constant(x), tf.fill([8], np.float32(np.pi / 2))).numpy()
    np.testing.assert_allclose(quarter, np.stack([x[..., 2], x[..., 1], -x[..., 0]], -1), atol=1e-6)
    settings = config.default()
    settings.data.rotate = 180.0
    turned = augment.from_config(settings.data)
    steps = tf.constant([7], tf.int64)
    whole = turned(tf.constant(x), 5, steps, Shard(8, 0, 1, 8)).numpy()
    part = turned(tf.constant(x[4:]), 5, steps, Shard(8, 4, 1, 4)).numpy()
    np.testing.assert_array_equal(whole[4:], part)
    np.testing.assert_array_equal(whole[..., 1], x[..., 1])
    angles = [np.arctan2(cloud[:, 0, 0], cloud[:, 0, 2]) for cloud in (whole, x)]
    turns = (angles[0] - angles[1]) % (2 * np.pi)
    assert turns.max() < np.pi and len(np.unique(turns.round(4))) == 8


# --- files ------------------------------------------------------------------------------------------------------------


def write_clouds(folder, count=12, points=40):
    for name in ("chairs", "tables"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            np.save(folder / name / f"{i}.npy", rng().normal(size=(points, 3)) + i)


def built(folder, points=20, radius=0.5):
    return clouds.build(str(folder), points, radius, 0.25, 2**20)


def test_a_folder_of_arrays(tmp_path):
    write_clouds(tmp_path)
    np.savetxt(tmp_path / "chairs" / "more.xyz", np.hstack([rng().normal(size=(20, 3)), np.ones((20, 3))]))
    source = built(tmp_path)
    test = source.test(99, 0)
    assert source.count + len(test) == 25 and not source.skipped
    np.testing.assert_allclose(np.linalg.norm(test, axis=-1).max(1), 0.5, rtol=1e-5)
    assert {*source.labels[0]} == {0, 1}
    assert source.identity.parts.keys() >= {"chairs/0.npy", "chairs/more.xyz"}
    np.testing.assert_array_equal(built(tmp_path).test(99, 0), test)


def test_points_are_chosen_without_repetition_and_may_be_left_as_they_are(tmp_path):
    x = rng().normal(size=(40, 3))
    np.save(tmp_path / "a.npy", x)
    np.testing.assert_array_equal(built(tmp_path, 40, 0.0).test(1, 0)[0], x.astype(np.float32))
    some = built(tmp_path, 20, 0.0).test(1, 0)[0]
    assert len(np.unique(some, axis=0)) == 20 and {*some[:, 0]} < {*x[:, 0].astype(np.float32)}


def test_files_that_are_no_clouds_are_skipped_by_name(tmp_path, caplog):
    write_clouds(tmp_path, count=3)
    bad = {
        "few.npy": np.zeros((3, 3)),
        "flat.npy": np.zeros((40, 2)),
        "nan.npy": np.full((40, 3), np.nan),
        "one.npy": np.ones((40, 3)),
        "text.npy": np.array(["a"] * 40),
    }
    for name, x in bad.items():
        np.save(tmp_path / "chairs" / name, x)
    np.save(tmp_path / "chairs" / "object.npy", np.array([{}] * 40, object))
    (tmp_path / "chairs" / "words.xyz").write_text("a b c\n")
    source = built(tmp_path)
    assert {name.rpartition("/")[2] for name in source.skipped} == {*bad, "object.npy", "words.xyz"}
    assert "fewer than data.points=20" in source.skipped["chairs/few.npy"]
    assert "skipped 7 of 13 clouds" in caplog.text


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        built(tmp_path / "none")
    with pytest.raises(UserError, match="has no point clouds"):
        built(tmp_path)
    np.save(tmp_path / "few.npy", np.zeros((3, 3)))
    with pytest.raises(UserError, match=r"not one of 1 files .* few\.npy: it has 3 points"):
        built(tmp_path)
    with pytest.raises(UserError, match=r"more than data\.memory_gib"):
        clouds.build(str(tmp_path), 20, 0.5, 0.25, 100)


def test_without_trimesh_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    (tmp_path / "a.off").write_text("OFF\n")
    with pytest.raises(UserError, match=r"reads a\.off, is not installed: install the extra `clouds`"):
        built(tmp_path)


OFF = "OFF\n4 2 0\n0 0 0\n1 0 0\n1 0 3\n0 0 3\n3 0 1 2\n3 0 2 3\n"
OBJ = "v 0 0 0\nv 1 0 0\nv 1 0 3\nv 0 0 3\nf 1 2 3\nf 1 3 4\n"
PLY = "ply\nformat ascii 1.0\nelement vertex 30\nproperty float x\nproperty float y\nproperty float z\nend_header\n"


@needs_trimesh
def test_meshes_are_sampled_and_vertices_taken(tmp_path):
    (tmp_path / "a.off").write_text(OFF)
    (tmp_path / "b.obj").write_text(OBJ)
    (tmp_path / "c.ply").write_text(PLY + "".join(f"{i} {i**2} 0\n" for i in range(30)))
    binary = PLY.replace("ascii", "binary_little_endian").encode()
    (tmp_path / "d.ply").write_bytes(binary + np.arange(90, dtype="<f4").tobytes())
    (tmp_path / "e.ply").write_bytes(binary)
    for name in ("a.off", "b.obj"):
        x = clouds.read(str(tmp_path / name), 3000, rng())
        assert x.shape == (3000, 3) and (x[:, 1] == 0).all()
        np.testing.assert_allclose(x.mean(0), [0.5, 0, 1.5], atol=0.1)
    x = clouds.read(str(tmp_path / "c.ply"), 20, rng())
    np.testing.assert_allclose(x[:, 1], x[:, 0] ** 2)
    np.testing.assert_array_equal(clouds.read(str(tmp_path / "d.ply"), 30, rng()), np.arange(90).reshape(30, 3))
    assert [*built(tmp_path).skipped] == ["e.ply"]


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_occupancy_is_of_the_nearest_cells():
    x = rng().uniform(-0.6, 0.6, (2, 30, 3))
    axis = np.arange(28) / 27 - 0.5
    cells = np.array([(a, b, c) for a in axis for b in axis for c in axis if a * a + b * b + c * c <= 0.25])
    wanted = np.zeros(len(cells))
    for point in x.reshape(-1, 3):
        wanted[np.square(cells - point).sum(1).argmin()] += 1 / 60
    np.testing.assert_allclose(np.sort(scores.occupancy(x)), np.sort(wanted))
    assert scores.occupancy(x).shape == wanted.shape


def test_jsd_is_in_bits():
    assert scores.js_divergence(np.array([1.0, 0]), np.array([0, 1.0])) == 1
    assert scores.js_divergence(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0
    wanted = 0.5 * np.log2(4 / 3) + 0.5 * (0.5 * np.log2(2 / 3) + 0.5 * np.log2(2))  # of (1, 0) and (1/2, 1/2)
    assert scores.js_divergence(np.array([1.0, 0]), np.array([0.5, 0.5])) == pytest.approx(wanted)


def brute(a, b):
    table = ((a[:, None] - b[None]) ** 2).sum(-1)
    return table.min(1).sum() + table.min(0).sum()


def test_the_comparison_is_that_of_all_pairs():
    real, drawn = rng().normal(size=(2, 6, 9, 3))
    drawn = 0.8 * drawn[:5]
    both = [*real, *drawn]
    table = np.array([[brute(a, b) for b in both] for a in both])
    np.testing.assert_allclose(scores.distances(real, drawn), table[:6, 6:], rtol=1e-5)
    got = scores.compared(table[:6, 6:], table[:6, :6], table[6:, 6:])
    assert got.mmd == pytest.approx(np.mean([min(brute(r, s) for s in drawn) for r in real]))
    nearest = {min(range(6), key=lambda i: brute(real[i], s)) for s in drawn}
    assert got.cov == len(nearest) / 6
    kinds = [0] * 6 + [1] * 5
    others = [min((j for j in range(11) if j != i), key=lambda j: table[i, j]) for i in range(11)]
    assert got.nna == sum(kinds[i] == kinds[j] for i, j in enumerate(others)) / 11


def test_copies_of_the_references_cannot_be_told_apart():
    real = rng().normal(size=(6, 9, 3))
    table = np.array([[brute(a, b) for b in real] for a in real])
    assert scores.compared(table, table, table) == (0, 1, 0)  # the nearest of each is its copy
    far = scores.compared(table + 1e3, table, table)
    assert far.nna == 1


def test_the_evaluator_refuses_points():
    settings = config.read_recipe("configs/moons.py")
    settings.eval.evaluators = ("clouds",)
    with pytest.raises(UserError, match=r"not the points of data\.source=moons"):
        scores.EVALUATOR.check(settings)
