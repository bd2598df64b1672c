"""log p(x) by importance weighting, against models whose log p(x) is known in closed form."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from sintrovae_jax import config as configs
from sintrovae_jax import dispatch, importance, inference, priors
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import Posterior, trained

RNG = np.random.default_rng(0)


class Linear:
    """p(z) = N(0, s² I), p(x|z) = N(W z + b, σ² I), so that p(x) = N(b, s² W Wᵀ + σ² I)."""

    def __init__(self, dimensions, latents, prior_std=1.0, std=0.5, orthogonal=False):
        w = RNG.normal(size=(dimensions, latents))
        self.w = np.linalg.qr(w)[0] * RNG.uniform(0.5, 1.5, latents) if orthogonal else w
        self.b, self.prior_std, self.std = RNG.normal(size=dimensions), prior_std, std

    def draw(self, n):
        z = self.prior_std * RNG.normal(size=(n, self.w.shape[1]))
        return z @ self.w.T + self.b + self.std * RNG.normal(size=(n, len(self.b)))

    def log_p(self, x):
        covariance = self.prior_std**2 * self.w @ self.w.T + self.std**2 * np.eye(len(self.b))
        return multivariate_normal(self.b, covariance).logpdf(x)

    def posterior(self, x):
        """Mean [N, Z] and covariance [Z, Z] of p(z|x)."""
        precision = np.eye(self.w.shape[1]) / self.prior_std**2 + self.w.T @ self.w / self.std**2
        covariance = np.linalg.inv(precision)
        return (x - self.b) @ self.w @ covariance / self.std**2, covariance

    def estimate(self, x, q, samples, seed=0):
        q = Posterior(*(jnp.asarray(np.broadcast_to(a, (len(x), self.w.shape[1])), jnp.float32) for a in q))
        weights = jnp.asarray(self.w.T, jnp.float32), jnp.asarray(self.b, jnp.float32)
        given = weights, jnp.asarray(x, jnp.float32), q, jax.random.split(jax.random.key(seed), len(x))
        sums, ends = importance.no_samples(len(x)), (0, samples // 3, samples)  # in two pieces
        for first, stop in itertools.pairwise(ends):
            sums = add_samples(sums, *given, first, stop, self.std, self.prior_std)
        return importance.estimate(sums, samples)


@jax.jit
def add_samples(sums, weights, x, q, keys, first, stop, std, prior_std):
    def decode(z, noise):
        del noise
        return z @ weights[0] + weights[1]

    return importance.add_samples(
        sums, decode, x, q, keys, first, stop, std=std, log_prior=priors.Normal(prior_std).log_prob
    )


@pytest.mark.parametrize("prior_std", [1.0, 1.7])
def test_one_sample_of_the_true_posterior_is_enough(prior_std):
    """Where q(z|x) = p(z|x), every importance weight is p(x): no sampling error at all."""
    model = Linear(6, 3, prior_std, orthogonal=True)
    x = model.draw(50)
    mean, covariance = model.posterior(x)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-12)
    for samples in (1, 7):
        got = model.estimate(x, (mean, np.log(np.diag(covariance))), samples)
        np.testing.assert_allclose(got.log_likelihood, model.log_p(x), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got.elbo, model.log_p(x), rtol=1e-4, atol=1e-4)


def test_it_tightens_as_samples_grow():
    """With a wrong posterior it is a lower bound in expectation, closer with every more samples."""
    model = Linear(5, 3)
    x = model.draw(200)
    mean, covariance = model.posterior(x)
    q = (mean + np.sqrt(np.diag(covariance)), np.log(1.5 * np.diag(covariance)))
    gaps = [float(np.mean(model.log_p(x) - model.estimate(x, q, k).log_likelihood)) for k in (1, 10, 100, 10_000)]
    assert gaps[0] > 3 * gaps[1] > 0
    assert gaps[1] > 2 * gaps[2] > 0
    assert abs(gaps[3]) < 0.01


def test_the_elbo_keeps_its_digits_over_many_samples():
    """Every weight is the same large number: so is their mean."""
    model = Linear(200, 1, std=0.05)
    x = model.draw(2)
    model.w = model.w * 0
    got, wanted = model.estimate(x, (np.zeros(1), np.zeros(1)), 3000), model.log_p(x)
    np.testing.assert_allclose(got.elbo, wanted, rtol=1e-5)
    np.testing.assert_allclose(got.log_likelihood, wanted, rtol=1e-5)


def test_the_elbo_is_that_of_the_closed_form():
    model = Linear(4, 2)
    x = model.draw(100)
    mean, covariance = model.posterior(x)
    variance = np.diag(covariance) * 0.5
    # E_q[log p(x|z)] - KL(q || p(z)), for a linear decoder.
    error = np.square(x - mean @ model.w.T - model.b).sum(1) + (np.square(model.w) * variance).sum()
    log_p_x = -0.5 * error / model.std**2 - 2 * np.log(2 * np.pi * model.std**2)
    kl = 0.5 * (variance + mean**2 - 1 - np.log(variance)).sum(1)
    got = model.estimate(x, (mean, np.log(variance)), 4000).elbo
    np.testing.assert_allclose(np.mean(got), np.mean(log_p_x - kl), rtol=2e-3)


def test_nothing_overflows_far_from_the_data():
    model = Linear(500, 2, std=0.01)
    x = model.draw(3) + 5
    got = model.estimate(x, (np.zeros(2), np.zeros(2)), 5).log_likelihood
    assert np.isfinite(got).all()
    assert (np.asarray(got) < -1e5).all()


@pytest.fixture(scope="module")
def model():
    """A model without hidden layers: linear, its log p(x) is known too. Its posterior is as wide as the prior."""
    config = configs.read_recipe("configs/gaussians8.py")
    config.model.channels, config.objective.prior_std = (), 1.3
    networks, _, create = dispatch.from_config(config)
    fresh = inference.from_state(config, networks, create())
    wide = {"bias": jnp.repeat(jnp.array([0.0, 2 * math.log(1.3)]), 2), "kernel": jnp.zeros((2, 4))}
    encoder = {"params": {"Dense_0": {"dense": wide}}}
    return dataclasses.replace(fresh, variables={**fresh.variables, "encoder": encoder})


def test_a_model_in_chunks(model):
    x = RNG.normal(size=(70, 2)).astype(np.float32)
    weights = jax.tree.leaves(model.variables["decoder"]["params"])
    w, b = (next(np.asarray(a, np.float64) for a in weights if a.ndim == n) for n in (2, 1))
    wanted = multivariate_normal(b, 1.3**2 * w.T @ w + 0.6**2 * np.eye(2)).logpdf(x)
    got = np.asarray(model.log_likelihood(x, 3000, std=0.6))
    assert np.mean(got) == pytest.approx(np.mean(wanted), rel=5e-3)
    np.testing.assert_allclose(got, wanted, rtol=0.05, atol=0.2)
    small = dataclasses.replace(model, config=model.config.copy_and_resolve_references())
    small.config.eval.batch_size = 16
    np.testing.assert_allclose(small.log_likelihood(x, 50, std=0.6), model.log_likelihood(x, 50, std=0.6), rtol=1e-5)
    np.testing.assert_allclose(model.log_likelihood(x[:9], 50), model.log_likelihood(x, 50)[:9], rtol=1e-5)


def test_memory_does_not_grow_with_samples(model):
    """One program for any number of samples, whose temporaries hold one sample an example."""
    args = (model.encoder, model.decoder, None)
    x, keys = jnp.zeros((64, 2)), jax.random.split(jax.random.key(0), 64)
    variables = jax.tree.map(jnp.asarray, model.variables)
    sums = importance.no_samples(64)
    compiled = trained._add_samples.lower(
        *args, variables, x, keys, sums, 0, 1000, 0.6, priors.Normal(1.0), 1.0
    ).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2 * 4 * 50
    before = trained._add_samples._cache_size()
    for samples in (3, 30):
        model.log_likelihood(x, samples)
    assert trained._add_samples._cache_size() <= before + 1


def test_the_standard_deviation_of_the_objective(model):
    objective = model.config.objective
    assert model.observation_std == pytest.approx(math.sqrt(objective.beta_kl / (2 * objective.beta_rec)))
    silent = dataclasses.replace(model, config=model.config.copy_and_resolve_references())
    silent.config.objective.update({"name": "intro", "beta_kl": 3.0})
    assert silent.observation_std == pytest.approx(math.sqrt(1 / (2 * objective.beta_rec)))
    silent.config.objective.beta_rec = 0.0
    with pytest.raises(UserError, match=r"set eval\.likelihood\.observation_std"):
        silent.log_likelihood(np.zeros((1, 2)), 1)


def test_bits_per_dimension():
    """A density that is uniform on [0, 1]^D gives every one of 256^D images 8 bits a dimension."""
    assert importance.bits_per_dimension(0.0, 10) == 8
    assert importance.bits_per_dimension(10 * math.log(2), 10) == pytest.approx(7)
