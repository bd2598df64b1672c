"""Sprites: pictures by brute force, what is held out; and scores of a transfer, whose right answers are known."""

import jax
import numpy as np
import pytest
from matplotlib import colors, path
from PIL import Image

from sintrovae_jax import config as configs
from sintrovae_jax import dispatch, inference
from sintrovae_jax.data import pipeline, sources, sprites
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import transfer
from sintrovae_jax.evaluators.scoring import Scoring
from sintrovae_jax.models import two_encoder
from sintrovae_jax.parallel import Shard
from sintrovae_jax.plots import draw


def recipe(**values):
    settings = configs.read_recipe("configs/sprites.py")
    settings.update_from_flattened_dict({"data.image_size": 16, "model.channels": (4, 8)} | values)
    configs.validate(settings)
    return settings


def brute_force(number, content, size, fine=16):
    """One picture from its outline: every pixel the mean of fine × fine points. [size, size, 3], on black."""
    outline = list(sprites.outlines().values())[number % 6]
    hue, radius = number // 6 % 12 / 12, sprites.SIZES[number // 72]
    angle, places = content % 12 * np.pi / 6, np.linspace(-0.45, 0.45, 8)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = radius * outline @ turn.T + (places[content // 12 % 8], places[content // 96])  # rows from the bottom up
    axis = (2 * np.arange(size * fine) + 1) / (size * fine) - 1
    points = np.stack(np.meshgrid(axis, -axis), -1).reshape(-1, 2)
    inside = path.Path(corners).contains_points(points).reshape(size, fine, size, fine).mean((1, 3))
    return inside[..., None] * colors.hsv_to_rgb((hue, 0.9, 1.0))


@pytest.mark.parametrize("size", [32, 64])
def test_pictures_by_brute_force(size):
    rng = np.random.default_rng(0)
    classes, contents = (rng.integers(0, count, 24) for count in (sprites.CLASSES, sprites.CONTENTS))
    classes[:6] = np.arange(6)  # every shape
    got = sprites.render(classes, contents, size, (0, 0, 0)).numpy() / 255
    for picture, *numbers in zip(got, classes, contents, strict=True):
        away = np.abs(picture - brute_force(*numbers, size))
        assert away.max() < 0.5  # a sharp corner within a pixel
        assert away.mean() < 0.003
        assert (away > 0.2).mean() < 0.01


def test_every_outline_has_one_tip_and_lies_about_its_centre():
    for corners in sprites.outlines().values():
        distance = np.linalg.norm(corners, axis=1)
        assert distance.max() == pytest.approx(1)
        np.testing.assert_allclose(np.sort(corners[:, 0]), -np.sort(corners[:, 0])[::-1], atol=1e-9)  # left is as right
        axis = np.linspace(-1, 1, 201)
        points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        inside = points[sprites.distances(corners, points) < 0]
        np.testing.assert_allclose(inside.mean(0), 0, atol=0.01)


def test_class_and_content_of_test_images_are_both_new():
    factors = pipeline.build(recipe().data).factors
    (train_class, train_content), (test_class, test_content) = factors
    assert not set(train_class) & set(test_class)
    assert not set(train_content) & set(test_content)
    assert set(train_class) | set(test_class) == set(range(288))
    assert set(train_content) | set(test_content) == set(range(768))
    assert (len(set(test_class)), len(set(test_content))) == (36, 96)
    assert len({*zip(train_class, train_content, strict=True)}) == len(train_class) == 252 * 672
    # Every shape, hue, size, turn and place is also in training: only their combinations are new.
    for base, numbers in ((6, train_class), (12, train_class // 6), (4, train_class // 72), (12, train_content)):
        assert set(numbers % base) == set(range(base))


def test_training_streams_pictures_of_the_training_part_and_test_gives_the_other():
    source, shard = pipeline.build(recipe().data), Shard(8, 0, 1, 8)
    factors = source.factors
    classes, contents = (np.unique(numbers) for numbers in factors.train)
    streamed = next(source.stream(3, 5, 6, shard).as_numpy_iterator())
    which = sources.chosen(3, np.int64(5), len(factors.train[0]), shard).numpy()
    wanted = source.render(classes[which // len(contents)], contents[which % len(contents)])
    np.testing.assert_array_equal(sources.as_float(streamed), wanted)
    np.testing.assert_array_equal(source.test(9, 0), source.render(*(numbers[:9] for numbers in factors.test)))
    first = sources.as_float(next(source.train(7)))
    np.testing.assert_array_equal(first, source.render(*(numbers[:7] for numbers in factors.train)))
    assert [len(y) for y in source.labels] == [252 * 672, 36 * 96]


def test_sprites_need_colours():
    with pytest.raises(UserError, match=r"set data\.image_channels=3"):
        pipeline.build(recipe(**{"data.image_channels": 1}).data)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_accuracies_tell_which_code_knows_what():
    rng = np.random.default_rng(0)
    known = {"class": rng.integers(0, 5, 600) * 7, "content": rng.integers(0, 8, 600)}
    codes = {"class": np.eye(36)[known["class"]], "content": np.eye(8)[known["content"]]}
    codes = {name: code + 0.1 * rng.normal(size=code.shape) for name, code in codes.items()}
    got = transfer.accuracies(codes, known)
    assert min(got["class_from_class"], got["content_from_content"]) > 0.98
    assert got["class_from_content"] < got["class_by_chance"] + 0.1 < 0.4
    assert got["content_from_class"] < got["content_by_chance"] + 0.1 < 0.3
    commonest = max((known["class"][1::2] == name).mean() for name in np.unique(known["class"]))
    assert got["class_by_chance"] == pytest.approx(commonest)


@pytest.fixture(scope="module")
def untrained():
    """(model, source)."""
    settings = recipe(**{"eval.num_samples": 20})
    networks, _, create = dispatch.from_config(settings)
    return inference.from_state(settings, networks, jax.jit(create)()), pipeline.build(settings.data)


def test_errors_are_those_of_the_true_pictures(untrained, tmp_path):
    model, source = untrained
    got = transfer.evaluate(Scoring(model, source, tmp_path))
    x = source.test(20, 0)
    classes, contents = (numbers[:20] for numbers in source.factors.test)
    errors = {"error": [], "copy_class": [], "copy_content": []}
    for i in range(20):
        j = (i + 1) % 20
        truth = source.render(classes[i : i + 1], contents[j : j + 1])[0]
        made = np.asarray(model.translate(x[i : i + 1], x[j : j + 1]))[0]
        for name, image in zip(errors, (made, x[i], x[j]), strict=True):
            errors[name].append(((truth - image) ** 2).sum())
    for name, values in errors.items():
        assert got[f"transfer_{name}"] == pytest.approx(np.mean(values), rel=1e-4)
    best = min(got["transfer_copy_class"], got["transfer_copy_content"])
    assert got["transfer_ratio"] == pytest.approx(got["transfer_error"] / best)
    assert got["transfer_images"] == 20
    assert {"class_from_class", "class_from_content", "content_from_class", "content_from_content"} < set(got)


def test_the_table_has_contents_down_the_side_and_classes_along_the_top(untrained, tmp_path):
    model, source = untrained
    x = source.test(5, 0)
    draw.grid(tmp_path / "table.png", *two_encoder.translation_table(model, x[:3], x[3:]))
    pixels = np.asarray(Image.open(tmp_path / "table.png"))
    assert pixels.shape == (3 * 51 - 3, 4 * 51 - 3, 3)
    cells = np.pad(pixels, ((0, 3), (0, 3), (0, 0))).reshape(3, 51, 4, 51, 3)[:, :48:3, :, :48:3].swapaxes(1, 2)

    def shown(image):
        return (np.asarray(image).clip(0, 1) * 255 + 0.5).astype(np.uint8)

    np.testing.assert_array_equal(cells[0, 1:], shown(x[:3]))
    np.testing.assert_array_equal(cells[1:, 0], shown(x[3:]))
    for row in range(2):
        for column in range(3):
            wanted = shown(model.translate(x[column : column + 1], x[3 + row : 4 + row]))[0]
            assert np.abs(cells[1 + row, 1 + column].astype(int) - wanted).max() <= 1
