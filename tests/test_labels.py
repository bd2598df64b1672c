"""Labels of training: with their images, in the order of the data, and from where."""

import numpy as np
import pytest
from PIL import Image

from sintrovae_jax import config as configs
from sintrovae_jax import parallel
from sintrovae_jax.data import pipeline, sources
from sintrovae_jax.data.source import check_labels, labels_of_test
from sintrovae_jax.errors import UserError


def settings(classes, source):
    config = configs.read_recipe("configs/digits_conditional.py")
    config.model.classes, config.data.source, config.data.image_size = classes, source, 4
    return config


def numbered(count=50):
    """Images of one pixel that shows their number, whose class is the number modulo 7."""
    x, classes = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), np.arange(count) % 7
    return sources.Arrays(x, x[:9], classes=(classes, classes[:9]))


@pytest.mark.parametrize("devices", [1, 2])
def test_labels_go_with_their_images(devices):
    """Shuffled over epochs, from any step, on any number of devices."""
    data, shard = configs.read_recipe("digits").data, parallel.Shard(8, 0, devices, 8 // devices)
    given = {"seed": 3, "substeps": 2, "shard": shard, "labels": True}
    all_of_them = list(pipeline.batches(numbered(), data, start=0, stop=20, **given))
    for batch in all_of_them:
        assert batch["labels"].shape == batch["index"].shape == (devices, 2, 8 // devices)
        np.testing.assert_array_equal(batch["labels"], batch["x"][..., 0, 0, 0] % 7)
    (resumed, *_) = pipeline.batches(numbered(), data, start=10, stop=20, **given)
    np.testing.assert_array_equal(resumed["labels"], all_of_them[5]["labels"])
    assert "labels" not in next(pipeline.batches(numbered(), data, start=0, stop=2, **given | {"labels": False}))


def test_a_folder_with_a_folder_for_each_class(tmp_path):
    for number, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(20):
            Image.new("L", (4, 4), 10 * number).save(tmp_path / "in" / name / f"{i}.png")
    config = settings(3, f"folder:{tmp_path / 'in'}")
    source = pipeline.build(config.data)
    check_labels(config, source)
    test = source.test(9, 0)
    np.testing.assert_array_equal((255 * test[:, 0, 0, 0]).round() / 10, labels_of_test(config, source, 9))
    shard = parallel.Shard(8, 0, 1, 8)
    batch = next(pipeline.batches(source, config.data, seed=0, start=0, stop=5, substeps=5, shard=shard, labels=True))
    np.testing.assert_array_equal(batch["x"][..., 0, 0, 0] / 10, batch["labels"])
    assert len(np.unique(batch["labels"])) == 3
    with pytest.raises(UserError, match=r"model\.classes=2, but .* has labels 0 to 2"):
        check_labels(settings(2, "folder:"), source)
    Image.new("L", (4, 4)).save(tmp_path / "in" / "outside.png")
    with pytest.raises(UserError, match=r"model\.classes needs labels, which this data\.source does not serve"):
        check_labels(config, pipeline.build(config.data))
