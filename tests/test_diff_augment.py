"""Differentiable augmentation: against numpy, its gradient, its chances, and where a step uses it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from conftest import here

from sintrovae_jax import diff_augment, objectives, parallel, train_state, train_step
from sintrovae_jax.models import mlp
from sintrovae_jax.passes import Passes, Static, draw_noise

SHAPE = (16, 24, 3)


@functools.cache
def keys(n):
    return jax.random.split(jax.random.key(0), n)


def moved(image, offset):
    padded = np.pad(image, ((20, 20), (30, 30), (0, 0)))
    return padded[20 - offset[0] : 36 - offset[0], 30 - offset[1] : 54 - offset[1]]


def test_a_shift_and_its_transpose():
    rng = np.random.default_rng(0)
    image, gradient = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    for offset in ((0, 0), (2, -3), (-2, 1), (16, 0), (-20, 30)):
        y, pull = jax.vjp(lambda x, o=offset: diff_augment.shift(x, jnp.array(o)), image)
        np.testing.assert_array_equal(y, moved(image, offset))
        np.testing.assert_array_equal(pull(gradient)[0], moved(gradient, (-offset[0], -offset[1])))


def test_shifts_are_within_an_eighth_and_happen_half_of_the_time():
    shifts = jax.jit(jax.vmap(diff_augment.image_shifted))(keys(2000), jnp.ones((2000, *SHAPE)))
    empty = np.asarray(shifts)[..., 0] == 0
    rows, columns = empty.all(2).sum(1), empty.all(1).sum(1)
    assert rows.max() == 2
    assert columns.max() == 3
    still = np.mean((rows == 0) & (columns == 0))
    assert abs(still - (0.5 + 0.5 / (5 * 7))) < 0.04  # with no shift among the 35


def test_a_rectangle_of_up_to_a_half_is_erased_half_of_the_time():
    erased = jax.jit(jax.vmap(diff_augment.image_erased))(keys(2000), jnp.ones((2000, *SHAPE)))
    empty = np.asarray(erased)[..., 0] == 0
    rows, columns = empty.any(2), empty.any(1)
    np.testing.assert_array_equal(empty, rows[:, :, None] & columns[:, None])
    for line in (rows, columns):
        assert (np.abs(np.diff(line.astype(int), axis=1)).sum(1) <= 2).all()
    areas = empty.mean((1, 2))
    assert 0.42 < areas.max() < 0.56  # half, in whole pixels
    assert abs(np.mean(areas > 0) - 0.5) < 0.04
    assert abs(areas[areas > 0].mean() - 0.25) < 0.02
    for axis in (1, 2):  # anywhere, as often on either side
        often = empty.any(3 - axis).mean(0)
        assert often.min() > 0.01
        assert abs(often - often[::-1]).max() < 0.05


def test_every_image_has_a_draw_of_its_own():
    images = jnp.asarray(np.random.default_rng(0).random((8, *SHAPE)), jnp.float32)
    whole = jax.jit(diff_augment.augment)(keys(8), images)
    order = np.array([5, 2, 7])
    np.testing.assert_array_equal(jax.jit(diff_augment.augment)(keys(8)[order], images[order]), whole[order])
    assert len(np.unique(jax.jit(diff_augment.augment)(keys(8), images[:1].repeat(8, 0)), axis=0)) > 3


@functools.cache
def made() -> tuple[train_state.Networks, train_state.TrainState]:
    networks = train_state.Networks(mlp.Encoder((8,), 2), mlp.Decoder((8,), (8, 8, 1)), *[optax.scale_by_adam()] * 2)
    return networks, jax.jit(functools.partial(train_state.create, networks, 0, (8, 8, 1), 2))()


X = np.random.default_rng(0).random((4, 8, 8, 1)).astype(np.float32)
HYPER = objectives.Hyper(*[np.float32(0.1)] * len(objectives.Hyper._fields))


def test_each_pass_of_the_encoder_is_augmented_anew():
    networks, state = made()
    x, names = jnp.asarray(X), ("recon", "fake")
    both = jnp.concatenate([x, x])

    @jax.jit
    def means():
        noise = draw_noise(parallel.example_keys(jax.random.key(1), jnp.array(3), jnp.arange(4)), 2)
        augmented, plain = (Passes(networks, Static(augment=a), state, noise, HYPER, ()) for a in (True, False))
        encode = functools.partial(augmented.encode, state.encoder.params)
        given = diff_augment.augment(augmented._keys(names, 2), both)
        gradient = jax.grad(lambda x: encode(x, names)[0].mean.sum())(both)
        expected = plain.encode(state.encoder.params, given, names)[0].mean
        passed = [encode(x, (name,))[0].mean for name in ("real", *names, "fake_again")]
        return encode(both, names)[0].mean, expected, given, gradient, passed, plain.encode(state.encoder.params, x)[0]

    got, expected, given, gradient, passed, plain = jax.tree.map(np.asarray, means())
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert len({mean.tobytes() for mean in passed}) == 4
    untouched = [np.isclose(mean, plain.mean, rtol=1e-4).all(1) for mean in passed]
    assert 0 < np.mean(untouched) < 0.6  # a quarter
    gone = ((given == 0) & (gradient == 0)).mean()
    assert 0 < gone < 0.5
    assert gradient.any((1, 2, 3)).all()  # it reaches all images


def test_only_what_the_encoder_is_given_changes():
    """Targets of reconstructions stay: with an encoder that ignores its input, augmentation changes nothing."""
    networks, state = made()
    blind = jax.tree.map(jnp.zeros_like, state.encoder.params)
    state = state.replace(encoder=state.encoder.replace(params=blind))
    batch = {"x": X, "index": np.arange(4)}

    def terms(augment):
        step = functools.partial(train_step.update, networks, Static(augment=augment))
        mapped = parallel.pmap(step, (0, 0, 0, None), jax.devices()[:1])
        return mapped(*jax.tree.map(lambda a: jnp.asarray(a)[None], (state, batch, HYPER)), jax.random.key(0))[1]

    plain, augmented = terms(False), terms(True)
    for name in ("rec_real", "kl_real", "rec_recon", "rec_fake"):
        np.testing.assert_array_equal(plain[name], augmented[name])


def test_points_are_not_augmented(tmp_path):
    args = ["--config", "configs/gaussians8.py", "--workdir", str(tmp_path / "run"), "--config.model.augment=True"]
    out, code = here(args)
    assert (code, out.strip()) == (2, "error: model.augment is for images: set it to False for points")
