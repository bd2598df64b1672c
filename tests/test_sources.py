"""What evaluation asks of a source: every training image once, a fingerprint, classes that fit their images."""

import os

import numpy as np
import pytest
from PIL import Image

from sintrovae_jax import config as configs
from sintrovae_jax import data
from sintrovae_jax.data import letters


def build(source, **values):
    config = configs.read_recipe("configs/digits.py").data
    config.update({"source": str(source), "image_size": 8} | values)
    return data.build(config)


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
