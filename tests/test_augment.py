"""Augmentation: what it does to pixels, in which order, and that a draw is a function of (seed, step, index) alone."""

import colorsys
import functools

import numpy as np
import pytest
import tensorflow as tf
from test_data import flat, settings

from sintrovae_jax.data import augment, pipeline, sources
from sintrovae_jax.parallel import Shard

RNG = np.random.default_rng(0)
BACKGROUND = (10, 200, 90)
COUNT = 4000
ALL = {"translate": 2, "hue": 0.5, "flip": True}


def pictures(dtype, count=6, height=5, width=7):
    x = RNG.integers(0, 256, (count, height, width, 3), np.uint8)
    return x if dtype == np.uint8 else (x / 255).astype(np.float32)


def moved(picture, down, right, fill):
    """The slow way: every pixel by itself."""
    out = np.empty_like(picture)
    height, width = picture.shape[:2]
    for i in range(height):
        for j in range(width):
            inside = 0 <= i - down < height and 0 <= j - right < width
            out[i, j] = picture[i - down, j - right] if inside else fill
    return out


def turned(picture, by):
    """Colours turned by colorsys, pixel by pixel; floats."""
    out = np.empty(picture.shape, np.float64)
    for at in np.ndindex(picture.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(float(v) for v in picture[at]))
        out[at] = colorsys.hsv_to_rgb((hue + by) % 1.0, saturation, value)
    return out


def augmented(x, seed=1, step=0, shard=None, **values):
    """This process's part of a batch, augmented."""
    function = compiled(**values) if len(x) > 40 else augmentation(**values)  # compiling, and each example, takes time
    seed, step = tf.constant(seed, tf.int64), tf.constant(step, tf.int64)
    return function(tf.constant(x), seed, step, shard or Shard(len(x), 0, 1, len(x))).numpy()


def augmentation(**values):
    return augment.from_config(settings("digits", image_size=8, image_channels=3, background=BACKGROUND, **values))


@functools.cache
def compiled(**values):
    return tf.function(augmentation(**values))


# What each does


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("flipped", [False, True])
def test_moving_fills_the_edges_and_then_mirrors(dtype, flipped):
    x = pictures(dtype)
    by = [(0, 0), (1, 0), (0, -2), (-3, 2), (4, 6), (-9, 9)]  # the last is all fill
    mirrored = np.arange(6) % 2 == flipped
    fill = np.array(BACKGROUND, np.uint8) if dtype == np.uint8 else np.array(BACKGROUND, np.float32) / 255
    got = augment.move(tf.constant(x), tf.constant(by), tf.constant(mirrored), BACKGROUND).numpy()
    assert got.dtype == dtype
    wanted = [moved(x[i], *by[i], fill) for i in range(6)]
    np.testing.assert_array_equal(got, [np.fliplr(p) if m else p for p, m in zip(wanted, mirrored, strict=True)])


def test_moving_grey_pictures():
    x = RNG.integers(0, 256, (2, 4, 4, 1), np.uint8)
    by, mirrored = tf.constant([(1, -1), (0, 2)]), tf.constant([False, False])
    got = augment.move(tf.constant(x), by, mirrored, (77,)).numpy()
    np.testing.assert_array_equal(got, [moved(x[0], 1, -1, 77), moved(x[1], 0, 2, 77)])


BY = (0, 0.1, 1 / 3, 0.5, -0.5, -0.25)


def test_hue_of_floats_is_that_of_colorsys():
    x = pictures(np.float32)
    x[0, 0, :3] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]]  # no hue to turn
    got = augment.turn_hue(tf.constant(x), tf.constant(BY)).numpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [turned(p, by) for p, by in zip(x, BY, strict=True)], atol=2e-6)


def test_hue_of_bytes_is_that_of_colorsys():
    x = pictures(np.uint8)
    got = augment.turn_hue(tf.constant(x), tf.constant(BY)).numpy()
    assert got.dtype == np.uint8
    wanted = np.stack([turned(p / 255, by) for p, by in zip(x, BY, strict=True)]) * 255
    assert np.abs(got - wanted).max() <= 1.01
    np.testing.assert_array_equal(got[0], x[0])


def test_a_third_of_the_circle_makes_red_green():
    x = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]]], np.uint8)
    got = augment.turn_hue(tf.constant(x), tf.constant([1 / 3])).numpy()
    np.testing.assert_array_equal(got[0, 0], [[0, 255, 0], [0, 0, 255], [255, 0, 0], [90, 90, 90]])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_flip_mirrors_left_to_right_only_what_it_is_told(dtype):
    x = pictures(dtype, count=2)
    got = augment.flip(tf.constant(x), tf.constant([False, True])).numpy()
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, [x[0], np.fliplr(x[1])])


# What is drawn


def offsets(step=0, seed=1, count=COUNT, **values):
    """How far (down, right) each example of a batch is moved: where its one white pixel went."""
    x = np.zeros((count, 9, 9, 3), np.uint8)
    x[:, 4, 4] = 255
    white = (augmented(x, seed, step, **{"translate": 2} | values) == 255).all(-1).reshape(count, 81)
    assert (white.sum(1) == 1).all()
    return np.stack(np.unravel_index(white.argmax(1), (9, 9)), 1) - 4


def hues(step=0, seed=1, count=COUNT, **values):
    """How far round the circle each example's colours are turned."""
    red = np.tile(np.array([255, 0, 0], np.uint8), (count, 1, 1, 1)) / np.float32(255)
    return np.array([colorsys.rgb_to_hsv(*p[0, 0].tolist())[0] for p in augmented(red, seed, step, **values)])


def flips(step=0, seed=1, count=COUNT, **values):
    """Whether each example is mirrored."""
    x = np.tile(np.array([0, 255], np.uint8)[:, None], (count, 1, 1, 3))
    return augmented(x, seed, step, **{"flip": True} | values)[:, 0, 0, 0] == 255


def test_translations_are_uniform_over_all_offsets():
    down, right = offsets().T
    assert set(down) == set(right) == {-2, -1, 0, 1, 2}
    counts = np.histogram2d(down, right, 5)[0]
    assert np.abs(counts - COUNT / 25).max() < 6 * np.sqrt(COUNT / 25)


def test_hues_go_round_the_whole_circle():
    counts = np.histogram(hues(hue=0.5), 20, (0, 1))[0]
    assert np.abs(counts - COUNT / 20).max() < 6 * np.sqrt(COUNT / 20)


def test_hues_stay_within_their_bound_on_either_side():
    by = (hues(hue=0.1) + 0.5) % 1 - 0.5
    assert np.abs(by).max() <= 0.1 + 1e-6
    counts = np.histogram(by, 10, (-0.1, 0.1))[0]
    assert np.abs(counts - COUNT / 10).max() < 6 * np.sqrt(COUNT / 10)


def test_half_of_all_examples_are_flipped():
    assert abs(flips().sum() - COUNT / 2) < 6 * np.sqrt(COUNT / 4)


def test_the_kinds_of_draws_have_nothing_to_do_with_each_other():
    down, right = offsets().T
    draws = np.stack([down, right, hues(hue=0.1) > 0.5, flips()])
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 6 / np.sqrt(COUNT)


def test_draws_differ_between_examples_steps_and_seeds():
    def draws(seed, step):
        return np.concatenate([offsets(step, seed, 500).ravel(), flips(step, seed, 500)])

    all_of_them = [draws(seed, step) for seed in range(3) for step in range(3)]
    assert len({d.tobytes() for d in all_of_them}) == 9
    assert np.abs(np.corrcoef(all_of_them) - np.eye(9)).max() < 6 / np.sqrt(1500)
    assert len(np.unique(hues(count=100, hue=0.5))) == 100


def test_seed_and_step_are_not_added_up():
    assert (offsets(step=1, seed=2, count=100) != offsets(step=2, seed=1, count=100)).any()


# All together


def test_translation_then_hue_then_flip_each_drawn_as_if_alone():
    x = pictures(np.uint8, count=40, height=8, width=8)
    down, right = offsets(step=7, count=40).T
    hue, flip = hues(step=7, count=40, hue=0.5), flips(step=7, count=40)
    assert flip.any()
    assert not flip.all()
    wanted = []
    for i, picture in enumerate(x):
        # What translation brings in is turned with the rest of the picture.
        out = turned(moved(picture, down[i], right[i], np.array(BACKGROUND)) / 255, hue[i]) * 255
        wanted.append(np.fliplr(out) if flip[i] else out)
    assert np.abs(augmented(x, step=7, **ALL) - np.stack(wanted)).max() <= 1.01


def test_nothing_asked_for_is_no_augmentation():
    assert augment.from_config(settings("digits", image_size=8)) is None


def test_grey_pictures_are_filled_with_the_grey_of_the_background():
    values = settings("digits", image_size=8, background=BACKGROUND, translate=1)
    x = np.zeros((50, 3, 3, 1), np.uint8)
    got = augment.from_config(values)(tf.constant(x), 0, tf.constant(0, tf.int64), Shard(50, 0, 1, 50)).numpy()
    assert set(np.unique(got)) == {0, round(0.299 * 10 + 0.587 * 200 + 0.114 * 90)}


def test_a_draw_does_not_depend_on_how_the_batch_is_shared():
    x = pictures(np.uint8, count=12, height=8, width=8)
    whole = augmented(x, **ALL)
    assert (whole != x).any()
    for processes, devices in ((2, 1), (2, 2), (3, 4), (12, 1)):
        part = 12 // processes
        shards = [Shard(12, p * part, devices, part // devices) for p in range(processes)]
        parts = [augmented(x[s.start : s.stop], shard=s, **ALL) for s in shards]
        np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_batches_are_augmented_the_same_wherever_they_start_and_whatever_shares_them(dtype):
    x = pictures(dtype, count=30, height=8, width=8)
    values = settings("npz:", image_size=8, image_channels=3, background=BACKGROUND, **ALL)

    def batches(start=0, stop=12, substeps=3, process=0, processes=1, devices=1, seed=5, values=values):
        per_device = 12 // processes // devices
        shard = Shard(12, process * devices * per_device, devices, per_device)
        options = {"seed": seed, "start": start, "stop": stop, "substeps": substeps, "shard": shard}
        return flat(list(pipeline.batches(sources.Arrays(x, x), values, **options)))

    whole, plain = batches(), batches(values=settings("npz:", image_size=8, image_channels=3))
    assert whole.dtype == dtype
    np.testing.assert_array_equal(whole, batches(substeps=1))
    np.testing.assert_array_equal(whole[7:], batches(start=7, substeps=1))
    np.testing.assert_array_equal(whole, batches(devices=4))
    two = [batches(process=p, processes=2, devices=2) for p in range(2)]
    np.testing.assert_array_equal(whole, np.concatenate(two, axis=1))
    for step in (0, 11):
        np.testing.assert_array_equal(whole[step], augmented(plain[step], seed=5, step=step, **ALL))
