"""The classifier of eval.features=classifier: one for each training set, wherever it is scored."""

import json
from pathlib import Path

import numpy as np
import pytest

from sintrovae_jax import config as configs
from sintrovae_jax import inference
from sintrovae_jax.data import pipeline
from sintrovae_jax.evaluators import classifier, features
from sintrovae_jax.evaluators.features import Extractor


def built(source: str, cache: Path, size: int = 8) -> Extractor:
    config = configs.read_recipe("digits")
    config.data.source, config.data.image_size, config.eval.cache = source, size, str(cache)
    return classifier.build(config, pipeline.build(config.data))


def labelled(path: Path, classes: int = 2) -> str:
    """A set of noise in an .npz file, brighter in the higher classes."""
    rng, arrays = np.random.default_rng(0), {}
    for name, count in (("train", 24), ("test", 8)):
        y = np.arange(count) % classes
        noise = rng.random((count, 8, 8, 1), np.float32)
        arrays |= {f"y_{name}": y, f"x_{name}": (noise + y[:, None, None, None].astype(np.float32)) / classes}
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize("size", [8, 16])
def test_that_of_the_digits_comes_with_the_package(size, tmp_path):
    extractor = built("digits", tmp_path / "cache", size)
    assert not (tmp_path / "cache").exists(), "nothing was trained"
    assert extractor.metrics["classifier_accuracy"] > 0.99
    if size == 16:  # it has scored the models that come with the package
        for name in ("digits", "digits_style"):
            results = json.loads((inference.PRETRAINED / name / "results.json").read_text())
            assert results["features"] == f"{extractor.name} {extractor.fingerprint}"


def test_it_is_trained_once_for_what_it_learns_from(tmp_path):
    cache, source = tmp_path / "cache", labelled(tmp_path / "x.npz")
    first = built(source, cache)
    (path,) = cache.iterdir()
    stored = path.read_bytes()
    again = built(source, cache)
    assert (again.fingerprint, again.metrics) == (first.fingerprint, first.metrics)
    assert path.read_bytes() == stored
    x = np.random.default_rng(1).random((3, 8, 8, 1), np.float32)
    np.testing.assert_array_equal(again.apply(again.variables, x), first.apply(first.variables, x))

    with np.load(path) as arrays:  # what was stored is used, not what training gives here
        np.savez(path, **dict(arrays) | {"scale": np.float32(1)})
    assert built(source, cache).variables["scale"] == 1
    for damage in (b"", stored[:100]):
        path.write_bytes(damage)
        assert built(source, cache).fingerprint == first.fingerprint
    with np.load(path) as arrays:
        np.savez(path, **{name: array for name, array in arrays.items() if name != "scale"})
    assert built(source, cache).fingerprint == first.fingerprint

    other = built(labelled(tmp_path / "x.npz", classes=3), cache)
    assert other.fingerprint != first.fingerprint
    assert len(list(cache.iterdir())) == 2


def test_of_two_processes_that_train_at_once_both_use_one(tmp_path):
    def mine() -> dict[str, np.ndarray]:
        theirs = features.stored(str(tmp_path), "x", lambda: {"a": np.ones(2)}, dict)  # faster
        assert (theirs["a"] == 1).all()
        return {"a": np.zeros(2)}

    assert (features.stored(str(tmp_path), "x", mine, dict)["a"] == 1).all()
