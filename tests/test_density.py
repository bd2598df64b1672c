"""The 2D metrics against scipy and by hand."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import distance
from scipy.stats import entropy

from sintrovae_jax import config as configs
from sintrovae_jax import dispatch, inference, objectives
from sintrovae_jax.data import pipeline
from sintrovae_jax.evaluators import density, latents
from sintrovae_jax.evaluators.scoring import Scoring

RNG = np.random.default_rng(0)


def histograms():
    p, q = RNG.random((2, 100, 100)) * (RNG.random((2, 100, 100)) > 0.3)
    return p / p.sum(), q / q.sum()


def test_js_divergence_equals_scipy():
    p, q = histograms()
    assert density.js_divergence(p, q) == pytest.approx(distance.jensenshannon(p.ravel(), q.ravel()) ** 2, rel=1e-10)
    assert density.js_divergence(p, p) == 0
    half = np.zeros((2, 4)), np.zeros((2, 4))
    half[0][0], half[1][1] = 0.25, 0.25
    assert density.js_divergence(*half) == pytest.approx(np.log(2))


def test_kl_divergence_equals_scipy_where_that_is_finite():
    p, q = histograms()
    q = q + 1e-3
    q /= q.sum()
    assert density.kl_divergence(p, q) == pytest.approx(entropy(p.ravel(), q.ravel()), rel=1e-10)
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    assert density.kl_divergence(p, q) == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 1e-14))


def test_paper_divergences_equal_a_double_loop():
    r, f = (h * 1600 for h in histograms())
    kl = jsd = 0.0
    for i in range(100):
        for j in range(100):
            a, b = r[i, j], f[i, j]
            m = (a + b) / 2
            if a > 0:
                kl += a * (np.log(a) - np.log(b + 1e-14)) / 100
            if m > 0:
                jsd += 0.5 * m * (2 * np.log(m) - np.log(a + 1e-14) - np.log(b + 1e-14)) / 100
    assert density.paper_divergences(r, f) == pytest.approx((kl, jsd), rel=1e-9)


def test_histogram_drops_what_is_outside():
    points = np.array([[0.01, 0.01], [0.01, 0.01], [-1.99, 1.99], [5.0, 0.0]])
    h = density.histogram(points, 2.0)
    assert h.sum() == pytest.approx(1)
    assert h[50, 50] == pytest.approx(2 / 3)
    assert h[0, 99] == pytest.approx(1 / 3)
    assert (density.histogram(points, 2.0, density=True) * 0.04**2).sum() == pytest.approx(1)


def test_grid_has_its_ends_and_the_picture_its_axes():
    points = density.grid(4.0, 5).reshape(5, 5, 2)
    np.testing.assert_array_equal(points[0, 0], [-4, -4])
    np.testing.assert_array_equal(points[-1, -1], [4, 4])
    np.testing.assert_array_equal(points[0, -1], [4, -4])  # x runs along columns


def test_gnelbo_by_hand():
    assert density.gnelbo(np.array([1.0, 3.0]), np.array([6.0, 10.0])) == pytest.approx(2 / 20)


@pytest.fixture(scope="module")
def model():
    config = configs.read_recipe("configs/rings.py")
    config.model.channels, config.eval.num_samples, config.eval.batch_size = (8,), 5_000, 16_384
    networks, _, create = dispatch.from_config(config)
    return inference.from_state(config, networks, create())


def test_energy_uses_the_mean_and_unit_betas(model):
    x = RNG.normal(size=(20_000, 2))  # more than one chunk
    q = model.encode(x)
    rec = ((x - np.asarray(model.decode(q.mean))) ** 2).sum(1)
    mean, logvar = np.asarray(q.mean, np.float64), np.asarray(q.logvar, np.float64)
    wanted = rec + 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum(1)
    np.testing.assert_allclose(density.energy(model, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.soak
def test_evaluate_scores_data_against_itself_as_close(model, tmp_path):
    """A model whose samples are data scores what two draws of the data score."""
    source = pipeline.build(model.config.data)
    perfect = types.SimpleNamespace(
        config=model.config,
        encode=model.encode,
        kl=model.kl,
        decode=model.decode,
        sample=lambda seed, n: source.test(100_000, seed + 1)[:n],
    )
    good = density.evaluate(Scoring(perfect, source, tmp_path))
    bad = density.evaluate(Scoring(model, source, tmp_path))
    assert good["jsd"] < 0.35 < bad["jsd"] <= np.log(2)
    assert good["kl"] < bad["kl"]
    assert good["gnelbo"] == bad["gnelbo"], "gnELBO does not look at samples"
    assert (tmp_path / "density.png").stat().st_size > 10_000


def test_latents_by_hand(model, tmp_path):
    source, seed = pipeline.build(model.config.data), model.config.seed
    model.config.eval.num_samples = 100
    got = latents.evaluate(Scoring(model, source, tmp_path))
    x = source.test(100, seed)
    assert got["kl_real"] == pytest.approx(float(objectives.kl(*model.encode(x)).mean()), rel=1e-5)
    fake = model.decode(model.prior(seed, 100))
    assert got["kl_fake"] == pytest.approx(float(objectives.kl(*model.encode(fake)).mean()), rel=1e-5)
    assert got["rec_error"] == pytest.approx(float(jnp.square(x - model.reconstruct(x)).sum(1).mean()), rel=1e-5)
    assert got["kl_gap"] == min(got["kl_fake"], got["kl_recon"]) - got["kl_real"]
