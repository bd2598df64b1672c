"""The paper's theorem on a finite game: its statements about any players, and where play ends."""

import numpy as np
import pytest
from conftest import here
from scipy import special

from sintrovae_jax.tools import theorem

R = np.array(theorem.DATA)


def players(generator, number, latents=3, values=4):
    q = special.softmax(2 * generator.normal(size=(number, values, latents)), axis=-1)
    return q, special.softmax(2 * generator.normal(size=(number, latents, values)), axis=-1)


def posterior(d):
    joint = np.swapaxes(d, -1, -2)
    return joint / joint.sum(axis=-1, keepdims=True)


def test_the_elbo_is_log_p_less_the_divergence_from_the_posterior():
    q, d = players(np.random.default_rng(0), 50)
    gap = special.rel_entr(q, posterior(d)).sum(axis=-1)
    np.testing.assert_allclose(theorem.elbo(q, d), np.log(theorem.marginal(d)) - gap, atol=1e-12)


@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, 2.0), (0.5, 2.0), (1.0, 8.0)])
def test_gradients_are_those_of_the_objectives(gamma, alpha):
    generator, step = np.random.default_rng(1), 1e-6
    encoder, decoder = generator.normal(size=(4, 3)), generator.normal(size=(3, 4))

    def objectives(encoder, decoder):
        q, d = special.softmax(encoder, axis=-1), special.softmax(decoder, axis=-1)
        w, p_d = theorem.elbo(q, d), theorem.marginal(d)
        return theorem.encoder_objective(w, p_d, R, alpha), theorem.decoder_objective(w, p_d, R, gamma)

    q, d = special.softmax(encoder, axis=-1), special.softmax(decoder, axis=-1)
    by_encoder = theorem.encoder_gradient(q, d, R, alpha)
    by_decoder = theorem.decoder_gradient(q, d, R, gamma)
    for place in np.ndindex(4, 3):
        change = np.zeros((4, 3))
        change[place] = step
        up, down = objectives(encoder + change, decoder)[0], objectives(encoder - change, decoder)[0]
        np.testing.assert_allclose((up - down) / (2 * step), by_encoder[place], atol=1e-8)
        up, down = objectives(encoder, decoder + change.T)[1], objectives(encoder, decoder - change.T)[1]
        np.testing.assert_allclose((up - down) / (2 * step), by_decoder[place[::-1]], atol=1e-8)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 8.0])
def test_no_encoder_does_better_than_the_best_elbo_and_one_reaches_it(alpha):
    q, d = players(np.random.default_rng(2), 500)
    w, p_d = theorem.elbo(q, d), theorem.marginal(d)
    most = theorem.encoder_objective(theorem.best_elbo(p_d, R, alpha), p_d, R, alpha)
    assert (theorem.encoder_objective(w, p_d, R, alpha) <= most + 1e-12).all()
    some = theorem.exact(p_d, R, alpha)
    assert 0 < some.sum() < 500
    exactly = theorem.elbo(posterior(d), d)
    np.testing.assert_allclose(exactly[some], theorem.best_elbo(p_d, R, alpha)[some], atol=1e-12)
    logits, d = np.zeros_like(q[:50]), d[:50]
    for _ in range(4000):
        logits += 0.5 * theorem.encoder_gradient(special.softmax(logits, axis=-1), d, R, alpha)
    end = theorem.encoder_objective(theorem.elbo(special.softmax(logits, axis=-1), d), p_d[:50], R, alpha)
    np.testing.assert_allclose(np.median(end - most[:50]), 0, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_no_decoder_does_better_than_the_divergence_allows(gamma):
    q, d = players(np.random.default_rng(3), 500)
    p_d = theorem.marginal(d)
    most = np.array([-theorem.divergence(p, R, gamma) for p in p_d]) - special.entr(R).sum()
    assert (theorem.decoder_objective(theorem.elbo(q, d), p_d, R, gamma) <= most + 1e-12).all()
    exactly = theorem.decoder_objective(theorem.elbo(posterior(d), d), p_d, R, gamma)
    np.testing.assert_allclose(exactly, most, atol=1e-12)
    assert (most <= -theorem.divergence(theorem.optimum(R, gamma), R, gamma) - special.entr(R).sum() + 1e-12).all()


def test_the_optimum_is_the_least_of_a_fine_grid():
    r, ticks = np.array([0.5, 0.3, 0.2]), np.arange(1, 200) / 200
    grid = [(a, b, 1 - a - b) for a in ticks for b in ticks if a + b < 0.9999]
    for gamma in (0.2, 0.9, 1.0):
        least = min(theorem.divergence(np.array(p), r, gamma) for p in grid)
        best = theorem.optimum(r, gamma)
        assert least - 2e-4 < theorem.divergence(best, r, gamma) <= least


@pytest.mark.parametrize(
    ("gamma", "alpha", "distance"),
    [(0.0, 2.0, 1e-9), (0.1, 2.0, 1e-9), (0.5, 2.0, 1e-9), (1.0, 8.0, 1e-9), (1.0, 2.0, None)],
)
def test_play_ends_at_the_optimum_where_the_condition_holds(ends, gamma, alpha, distance):
    q, d = ends[gamma, alpha]
    end, best = theorem.marginal(d), theorem.optimum(R, gamma)
    assert theorem.exact(best, R, alpha) == (distance is not None)
    if distance is not None:
        np.testing.assert_allclose(end, best, atol=distance)
        np.testing.assert_allclose(q, posterior(d), atol=1e-6)
    else:
        np.testing.assert_allclose(end, (0.741, 0.156, 0.076, 0.027), atol=5e-3)  # slow: the third decimal still moves
        np.testing.assert_allclose(best, (0.776, 0.131, 0.068, 0.025), atol=1e-3)


@pytest.fixture(scope="module")
def ends() -> dict:
    pairs = [(0.0, 2.0), (0.1, 2.0), (0.5, 2.0), (1.0, 8.0), (1.0, 2.0)]
    gamma, alpha = np.array(pairs).T
    return dict(zip(pairs, zip(*theorem.play(R, gamma, alpha, rounds=10_000), strict=True), strict=True))


def test_with_uniform_data_and_gamma_of_1_the_data_are_a_saddle():
    r = np.full(3, 1 / 3)
    at, way = theorem.divergence(r, r, 1.0), np.array([2.0, -1.0, -1.0])
    assert theorem.divergence(r + 0.01 * way, r, 1.0) < at < theorem.divergence(r - 0.01 * way, r, 1.0)
    assert abs(theorem.optimum(r, 1.0) - r).max() > 0.1
    np.testing.assert_allclose(theorem.optimum(r, 0.9), r, atol=1e-8)


def test_the_command_line(monkeypatch, tmp_path):
    monkeypatch.setattr(theorem, "play", lambda r, gamma, alpha: players(np.random.default_rng(0), len(gamma)))
    out, code = here(["--figure", str(tmp_path / "x.png")], theorem.main)
    assert code == 0
    assert len(out.splitlines()) == 1 + 2 * 11
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    for wrong in ("0.5,0.4", "a,b", "1", "1.5,-0.5", "nan,1"):
        out, code = here(["--data", wrong], theorem.main)
        assert code == 2
        assert len(out.splitlines()) == 1
        assert wrong in out
