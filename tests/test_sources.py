"""What evaluation asks of a source: every training image once, a fingerprint, classes that fit their images."""

import os

import numpy as np
import pytest
from PIL import Image

from sintrovae_jax import config as configs
from sintrovae_jax.data import letters, pipeline
from sintrovae_jax.errors import UserError


def build(source, **values):
    config = configs.read_recipe("configs/digits.py").data
    config.update({"source": str(source), "image_size": 8} | values)
    return pipeline.build(config)


def folder(place, count=30):
    """Pictures of one grey each, their number; number 7 is damaged."""
    place.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("L", (8, 8), i).save(place / f"{i:02}.png")
    Image.effect_noise((64, 64), 50).save(place / "07.png")
    (place / "07.png").write_bytes((place / "07.png").read_bytes()[:2000])
    return f"folder:{place}"


@pytest.mark.parametrize("memory_gib", [1.0, 1e-9])
@pytest.mark.parametrize("size", [8, 4])
def test_training_images_come_once_each_whether_in_memory_or_not(tmp_path, memory_gib, size):
    source = build(folder(tmp_path / "a"), memory_gib=memory_gib, test_fraction=0.2).at(size)
    pieces = list(source.train(5))
    assert all(piece.dtype == np.uint8 and piece.shape[1:] == (size, size, 1) and len(piece) <= 5 for piece in pieces)
    seen = np.concatenate(pieces)[:, 0, 0, 0]
    held_out = (255 * source.test(100, 0)[:, 0, 0, 0]).round().astype(int)
    assert sorted([*seen, *held_out]) == [i for i in range(30) if i != 7]
    assert "07.png" in source.skipped
    assert list(seen) != sorted(seen)  # the first ones are no special part of the set
    np.testing.assert_array_equal(seen, np.concatenate(list(source.train(7)))[:, 0, 0, 0])


@pytest.mark.parametrize("memory_gib", [1.0, 1e-9])
def test_a_fingerprint_changes_with_the_images(tmp_path, memory_gib):
    options = {"memory_gib": memory_gib, "test_fraction": 0.2}
    where = folder(tmp_path / "a")
    prints = [build(where, **options).fingerprint]
    assert build(where, **options).fingerprint == prints[0]
    prints.append(build(where, **options | {"image_size": 16}).fingerprint)
    prints.append(build(where, **options | {"test_fraction": 0.5}).fingerprint)
    prints.append(build(where, **options).at(4).fingerprint)
    Image.new("L", (8, 8), 99).save(tmp_path / "a" / "03.png")  # another picture of the same name
    os.utime(tmp_path / "a" / "03.png", (0, 0))
    prints.append(build(where, **options).fingerprint)
    (tmp_path / "a" / "05.png").unlink()
    prints.append(build(where, **options).fingerprint)
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("name", ["digits", "letters"])
def test_classes_are_those_of_the_images(name):
    """Neighbours look alike: an image's class is mostly that of the nearest of the others."""
    source = build(name)
    x, test = (x.reshape(len(x), -1) for x in (np.concatenate(list(source.train(400))) / 255, source.test(1000, 0)))
    assert (len(x), len(test)) == (1500, 297)
    train_classes, test_classes = source.labels
    nearest = ((test[:, None] - x[None]) ** 2).sum(-1).argmin(1)
    assert (train_classes[nearest] == test_classes).mean() > {"digits": 0.97, "letters": 0.9}[name]


def test_letters_are_made_as_digits_are():
    pictures, labels = letters.draw(400)
    assert set(np.unique(pictures)) <= set(range(17))
    assert pictures.max() == 16
    assert set(labels) == set(range(len(letters.LETTERS)))
    assert (pictures[:, [0, -1]].sum((1, 2)) > 0).all()  # they fill their height
    again, _ = letters.draw(10)
    np.testing.assert_array_equal(again, pictures[:10])
    assert abs(pictures.mean() - np.mean([p.mean() for p in _digits()])) < 2


def _digits():
    from sklearn.datasets import load_digits

    return load_digits().images


def test_an_npz_with_classes(tmp_path, caplog):
    x = np.arange(20, dtype=np.uint8).reshape(20, 1, 1).repeat(8, 1).repeat(8, 2)
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x[:5], y_train=np.arange(20)[:, None], y_test=np.arange(5))
    source = build(f"npz:{tmp_path / 'a.npz'}")
    np.testing.assert_array_equal(np.concatenate(list(source.train(6)))[:, 0, 0, 0], source.labels[0])
    np.testing.assert_array_equal(source.at(4).labels[0], source.labels[0])
    np.savez(tmp_path / "b.npz", x_train=x, x_test=x[:5], y_train=np.arange(19), y_test=np.arange(5))
    assert build(f"npz:{tmp_path / 'b.npz'}").labels is None
    assert "no whole numbers, one for each image" in caplog.text


# --- sets of known class and content ----------------------------------------------------------------------------------


def cars(models=9, size=8):
    """[models, 24, 4, size, size, 3]: red tells the model, green the azimuth, blue the elevation."""
    x = np.zeros((models, 24, 4, size, size, 3), np.uint8)
    x[..., 0] = np.arange(models)[:, None, None, None, None] * 20
    x[..., 1] = np.arange(24)[:, None, None, None] * 10
    x[..., 2] = np.arange(4)[:, None, None] * 60
    return x


def cars_as_mat(folder, x):
    from scipy.io import savemat

    for i, model in enumerate(x):
        savemat(folder / f"car_{i:03}_mesh.mat", {"im": model.transpose(2, 3, 4, 0, 1)})
    return folder


def cars_as_npz(folder, x):
    np.savez(folder / "cars3d.npz", imgs=x.transpose(2, 1, 0, 3, 4, 5).reshape(-1, *x.shape[3:]))
    return folder / "cars3d.npz"


@pytest.mark.parametrize("publish", [cars_as_mat, cars_as_npz])
def test_cars3d_in_both_layouts(tmp_path, publish):
    source = build(f"cars3d:{publish(tmp_path, cars())}", image_channels=3)
    train = (np.concatenate(list(source.train(100))), *source.factors.train)
    test = ((255 * source.test(10**6, 0)).round(), *source.factors.test)
    assert (len(train[0]), len(test[0])) == (8 * 96, 96)
    for x, classes, contents in (train, test):
        np.testing.assert_array_equal(x[:, 0, 0, 0], classes * 20)
        np.testing.assert_array_equal(x[:, 0, 0, 1], contents % 24 * 10)
        np.testing.assert_array_equal(x[:, 0, 0, 2], contents // 24 * 60)
    assert not set(train[1]) & set(test[1]), "a model is in training and in test"
    assert len(set(test[2][:20])) > 10, "the first test images are one view"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros(3)}, "has no `imgs`: Cars3D's is uint8"),
        ({"imgs": np.zeros((95, 8, 8, 3), np.uint8)}, r"has `imgs` of uint8 \(95, 8, 8, 3\)"),
        ({"imgs": np.zeros((96, 8, 8, 3), np.uint8)}, "has one model alone"),
    ],
)
def test_an_npz_that_is_no_cars3d(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=says):
        build(f"cars3d:{tmp_path / 'a.npz'}", image_channels=3)


def test_a_folder_that_is_no_cars3d(tmp_path):
    with pytest.raises(UserError, match=r"has no \.mat files"):
        build(f"cars3d:{tmp_path}", image_channels=3)
    (tmp_path / "a.mat").write_bytes(b"MATLAB no more")
    with pytest.raises(UserError, match=r"a\.mat cannot be read"):
        build(f"cars3d:{tmp_path}", image_channels=3)


def test_kth_has_a_folder_for_every_actor(tmp_path):
    for actor in range(3):
        (tmp_path / f"person{actor}").mkdir()
        for frame in range(20):
            Image.new("L", (10, 8), 50 * actor + frame).save(tmp_path / f"person{actor}" / f"{frame:03}.png")
    source = build(f"kth:{tmp_path}", test_fraction=0.1)
    train, test = np.concatenate(list(source.train(7))), (255 * source.test(100, 0)).round()
    for x, (classes, contents), frames in (
        (train, source.factors.train, range(18)),
        (test, source.factors.test, (18, 19)),
    ):
        np.testing.assert_array_equal(x[:, 0, 0, 0] // 50, classes)
        assert set(x[:, 0, 0, 0] % 50) == set(frames), "the last frames of every actor are held out"
        assert contents is None
    Image.new("L", (8, 8)).save(tmp_path / "stray.png")
    with pytest.raises(UserError, match=r"a folder for every class .*: stray\.png lies in none"):
        build(f"kth:{tmp_path}")
    (tmp_path / "stray.png").unlink()
    (tmp_path / "person1" / "003.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"1 of 60 pictures cannot be read, the first is person1/003\.png"):
        build(f"kth:{tmp_path}")
