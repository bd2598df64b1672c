"""BatchNorm at evaluation: standing statistics, the averaged networks, and that the batch does not matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sintrovae_jax import checkpoint, dispatch, inference, standing, workdirs
from sintrovae_jax import config as configs
from sintrovae_jax.data import pipeline
from sintrovae_jax.evaluators import evaluation, latents
from sintrovae_jax.evaluators.scoring import Scoring
from sintrovae_jax.models import trained


def settings(**train):
    out = configs.read_recipe("configs/digits.py")
    out.model.channels, out.model.z_dim = (4, 6), 3
    out.train.update(train)
    out.eval.num_samples = 100
    return out


@pytest.fixture(scope="module")
def model():
    """An untrained model whose running averages are far from anything it sees."""
    config = settings(batch_size=16)
    networks, _, create = dispatch.from_config(config)
    fresh = jax.device_get(jax.jit(create)())
    return inference.from_state(config, networks, fresh)


def batches(count, size):
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (size, 16, 16, 1)).astype(np.uint8) for _ in range(count)]


def first_norm_by_hand(kernel, images):
    """Mean and variance, averaged over batches, after the encoder's first 5×5 convolution, in numpy."""
    kernel, means, variances = np.asarray(kernel, np.float64), [], []
    for batch in images:
        padded = np.pad(batch / 255.0, ((0, 0), (2, 2), (2, 2), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))  # [B, H, W, C, 5, 5]
        out = np.einsum("bhwcij,ijco->bhwo", windows, kernel)
        means.append(out.mean((0, 1, 2)))
        variances.append(out.var((0, 1, 2)))
    return np.mean(means, 0), np.mean(variances, 0)


def test_averages_are_those_of_the_batches(model):
    images = batches(5, 8)
    got = standing.estimate(model, [{"x": x} for x in images], jax.random.key(0)).variables
    mean, var = first_norm_by_hand(model.variables["encoder"]["params"]["conv"]["kernel"], images)
    np.testing.assert_allclose(got["encoder"]["batch_stats"]["norm"]["mean"][0], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got["encoder"]["batch_stats"]["norm"]["var"][0], var, rtol=1e-4, atol=1e-6)
    for name in ("encoder", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, got[name]["params"], model.variables[name]["params"])
    old = model.variables["decoder"]["batch_stats"]["last"]["norm1"]["mean"]
    assert np.abs(got["decoder"]["batch_stats"]["last"]["norm1"]["mean"] - old).max() > 1e-3


@functools.partial(jax.jit, static_argnums=0)
def in_training(module, variables, inputs):
    """What a network computes in training mode, on one device."""
    run = functools.partial(module.apply, variables, train=True, mutable=["batch_stats"])
    return jax.tree.map(lambda y: y[0], jax.vmap(run, axis_name="devices")(inputs[None])[0])


@pytest.mark.parametrize("role", ["prior", "posterior"])
def test_the_decoder_has_averages_for_what_it_decodes(model, role):
    """With one batch, evaluation with its averages is what training mode makes of that batch."""
    prior_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(5), 0))
    images = batches(1, 64)

    encoder, decoder = model.variables["encoder"], model.variables["decoder"]
    posterior = in_training(model.encoder, encoder, jnp.asarray(images[0], jnp.float32) / 255)
    z = model.prior(prior_key, 64)
    z = z if role == "prior" else posterior.sample(jax.random.normal(noise_key, z.shape))
    scored = standing.estimate(model, [{"x": x} for x in images], jax.random.key(5))
    wanted = in_training(model.decoder, decoder, z)
    np.testing.assert_allclose(scored.decode(z, role=role), wanted, rtol=1e-3, atol=1e-4)
    other = "prior" if role == "posterior" else "posterior"
    assert np.abs(scored.decode(z, role=other) - wanted).max() > 1e-3


def test_each_use_of_a_model_takes_the_averages_of_what_it_decodes(model):
    images = batches(1, 64)
    scored, x = standing.estimate(model, [{"x": x} for x in images], jax.random.key(5)), images[0][:3] / np.float32(255)
    np.testing.assert_array_equal(scored.sample(2, 3), scored.decode(scored.prior(2, 3), role="prior"))
    recon = scored.decode(scored.encode(x).mean, role="posterior")
    np.testing.assert_array_equal(scored.reconstruct(x), recon)
    np.testing.assert_allclose(scored.interpolate(x, x[::-1], 2)[:, 0], recon, atol=1e-5)
    assert np.abs(recon - scored.decode(scored.encode(x).mean, role="prior")).max() > 1e-3


@pytest.mark.parametrize("batch_norm", ["running", "standing"])
def test_nothing_scored_depends_on_the_evaluation_batch(model, batch_norm, tmp_path):
    figures = []
    source = pipeline.build(model.config.data)
    for batch_size in (7, 64, 256):
        config = model.config.copy_and_resolve_references()
        config.eval.update({"batch_size": batch_size, "batch_norm": batch_norm, "standing_batches": 4})
        scored = evaluation.prepared(dataclasses.replace(model, config=config), source)
        figures.append(latents.evaluate(Scoring(scored, source, tmp_path)))
        evaluation.write_results(scored, source, tmp_path, {"x": 1}, {})
        assert workdirs.read_results(tmp_path) == {"x": 1, "step": model.step, "batch_norm": batch_norm}
    for other in figures[1:]:
        assert other == pytest.approx(figures[0], rel=1e-5, abs=1e-7)
    running = latents.evaluate(Scoring(model, source, tmp_path))
    same = running["rec_error"] == pytest.approx(figures[0]["rec_error"], rel=1e-3)
    assert same == (batch_norm == "running"), "standing statistics changed nothing"


def test_long_inputs_go_through_in_chunks(model):
    small = dataclasses.replace(model, config=model.config.copy_and_resolve_references())
    small.config.eval.batch_size = 8
    z = small.prior(0, 21)
    np.testing.assert_allclose(small.decode(z), model.decode(z), rtol=1e-5, atol=1e-6)
    assert small.decode(z[:0]).shape == (0, 16, 16, 1)
    fresh = dataclasses.replace(small)  # which has put nothing on the devices yet
    np.testing.assert_allclose(jax.jit(fresh.decode)(z), model.decode(z), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fresh.decode(z), model.decode(z), rtol=1e-5, atol=1e-6)


def test_sampling_uses_the_average_where_there_is_one(tmp_path):
    config = settings(ema=0.9)
    networks, _, create = dispatch.from_config(config)
    fresh = jax.device_get(jax.jit(create)())
    fresh = fresh.replace(ema=jax.tree.map(lambda x: x * 0.5, fresh.ema))
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(fresh)
    checkpoints.close()
    configs.write(config, tmp_path)
    loaded = inference.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, fresh.ema)
    jax.tree.map(np.testing.assert_array_equal, inference.from_state(config, networks, fresh).variables, fresh.ema)


def test_a_checkpoint_has_the_target_decoder_and_the_average(tmp_path):
    config = settings(ema=0.9)
    config.objective.target_period = 5
    create = dispatch.from_config(config)[2]
    fresh = jax.device_get(jax.jit(create)())
    changed = jax.tree.map(lambda x: x + 1, fresh)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(changed)
    checkpoints.close()
    restored = checkpoint.Checkpoints(tmp_path).restore(jax.eval_shape(create))
    jax.tree.map(np.testing.assert_array_equal, restored, changed)


def test_the_great_circle(model):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 1, 3))
    t = np.linspace(0, 1, 9)[None, :, None]
    arc = np.asarray(trained.great_circle(jnp.asarray(a), jnp.asarray(b), jnp.asarray(t)))
    np.testing.assert_allclose(arc[:, 0], a[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(arc[:, -1], b[:, 0], rtol=1e-5, atol=1e-6)
    unit = arc / np.linalg.norm(arc, axis=-1, keepdims=True)
    ends = (a / np.linalg.norm(a, axis=-1, keepdims=True) * b / np.linalg.norm(b, axis=-1, keepdims=True)).sum(-1)
    r = np.linalg.norm(a[0]) / np.linalg.norm(b[0])
    same_length = trained.great_circle(jnp.asarray(a[:1]), jnp.asarray(b[:1] * r), jnp.asarray(t))
    turned = np.asarray(same_length) / np.linalg.norm(a[0])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), 1, rtol=1e-5)  # stays on the sphere
    steps = np.arccos((turned[:, 1:] * turned[:, :-1]).sum(-1).clip(-1, 1))
    np.testing.assert_allclose(steps, np.arccos(ends[0, 0]) / 8, rtol=1e-2)  # at an even pace
    assert np.abs(unit - a / np.linalg.norm(a, axis=-1, keepdims=True)).max() > 0.1
    straight = trained.great_circle(jnp.asarray(a), jnp.asarray(2 * a), jnp.asarray(t))
    np.testing.assert_allclose(straight, a + t * a, rtol=1e-4, atol=1e-5)  # no circle between parallel vectors
