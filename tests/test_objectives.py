"""Every formula against scipy, numpy or a closed form, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from sintrovae_jax import objectives

RNG = np.random.default_rng(0)


def test_reconstruction_errors_are_sums_per_example():
    x, y = RNG.uniform(0.1, 0.9, (2, 5, 4, 3, 2))
    np.testing.assert_allclose(objectives.mse(x, y), ((x - y) ** 2).sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(objectives.l1(x, y), np.abs(x - y).sum((1, 2, 3)), rtol=1e-5)
    wanted = -(x * np.log(y) + (1 - x) * np.log(1 - y)).sum((1, 2, 3))
    np.testing.assert_allclose(objectives.bce(x, y), wanted, rtol=1e-5)


def test_bce_of_a_saturated_output_is_finite():
    x = jnp.array([[0.0, 1.0, 1.0]])
    assert np.isfinite(objectives.bce(x, jnp.array([[1.0, 0.0, 1.0]]))).all()


@pytest.mark.parametrize(("mean", "logvar", "prior_std"), [(0.3, -1.0, 1.0), (-2.0, 0.5, 0.7), (0.0, 0.0, 1.0)])
def test_kl_equals_the_integral(mean, logvar, prior_std):
    q, p = stats.norm(mean, np.exp(logvar / 2)), stats.norm(0, prior_std)
    wanted, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -12, 12)
    got = objectives.kl(jnp.array([[mean]]), jnp.array([[logvar]]), prior_std)
    np.testing.assert_allclose(got, [wanted], atol=1e-5)


def test_kl_weights_multiply_dimensions():
    mean, logvar = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    each = [objectives.kl(mean[:, i : i + 1], logvar[:, i : i + 1]) for i in range(3)]
    got = objectives.kl(mean, logvar, weights=(0.0, 2.0, 0.5))
    np.testing.assert_allclose(got, 2 * each[1] + 0.5 * each[2], rtol=1e-5)


def test_terms_are_float32_even_for_bfloat16_arrays():
    x = jnp.ones((2, 3), jnp.bfloat16)
    for term in (objectives.mse(x, x), objectives.l1(x, x), objectives.bce(x, x), objectives.kl(x, x)):
        assert term.dtype == jnp.float32


HYPER = objectives.Hyper(
    beta_rec=0.5,
    beta_kl=2.0,
    beta_neg=3.0,
    gamma=3.0,
    gamma_r=0.2,
    alpha=2.0,
    scale=0.1,
    intro_alpha=0.25,
    margin=5.0,
    learning_rate=1.0,
    ema=0.0,
)
TERMS = objectives.Terms(
    rec_real=np.array([2.0, 4.0]),
    kl_real=np.array([1.0, 2.0]),
    rec_recon=np.array([9.0, 11.0]),
    kl_recon=np.array([1.0, 9.0]),
    rec_fake=np.array([20.0, 24.0]),
    kl_fake=np.array([4.0, 4.0]),
)
REAL = 0.1 * (0.5 * 3 + 2.0 * 1.5)


def test_the_exponential_is_taken_per_example_then_averaged():
    exponents = [0.5 * 9 + 3 * 1, 0.5 * 11 + 3 * 9], [0.5 * 20 + 3 * 4, 0.5 * 24 + 3 * 4]
    wanted = REAL + 0.5 * np.exp(-2 * 0.1 * np.array(exponents)).mean()
    assert float(objectives.soft_intro_encoder(TERMS, HYPER)) == pytest.approx(wanted, rel=1e-6)
    assert float(objectives.soft_intro_real(TERMS, HYPER)) == pytest.approx(REAL, rel=1e-6)


def test_decoder_objective_by_hand():
    wanted = 0.1 * (0.5 * 3 + 3 * (2 * (5 + 4) / 2 + 0.2 * 0.5 * (10 + 22) / 2))
    assert float(objectives.soft_intro_decoder(TERMS, HYPER)) == pytest.approx(wanted, rel=1e-6)
    without = TERMS._replace(rec_recon=0.0, rec_fake=0.0)  # which is what a step with γ_r = 0 leaves out
    assert float(objectives.soft_intro_decoder(without, HYPER)) == pytest.approx(0.1 * (1.5 + 3 * 9), rel=1e-6)


def test_intro_objectives_by_hand():
    real = 0.5 * 3 + 1.5
    assert float(objectives.intro_real(TERMS, HYPER)) == pytest.approx(real)
    hinge = (4 + 0) / 2 + 1
    assert float(objectives.intro_encoder(TERMS, HYPER)) == pytest.approx(real + 0.25 * hinge)
    assert float(objectives.intro_decoder(TERMS, HYPER)) == pytest.approx(0.5 * 3 + 0.25 * (5 + 4))
