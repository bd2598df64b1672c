"""Fréchet distance, KID, precision and recall, AUROC: against closed forms, double loops, brute force, scikit-learn."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics import auc, precision_recall_curve

from sintrovae_jax.evaluators import features, kid, ood, precision_recall
from sintrovae_jax.evaluators.frechet import frechet_distance

RNG = np.random.default_rng(0)


def moments(x):
    return x.mean(0), np.cov(x, rowvar=False)


def test_frechet_of_known_gaussians():
    """Diagonal covariances commute: |m_a - m_b|² + Σ (σ_a - σ_b)²."""
    mean_a, mean_b = RNG.normal(size=(2, 5))
    std_a, std_b = RNG.uniform(0.1, 3, (2, 5))
    turn = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    got = frechet_distance(mean_a, turn * std_a**2 @ turn.T, mean_b, turn * std_b**2 @ turn.T)
    assert got == pytest.approx(np.square(mean_a - mean_b).sum() + np.square(std_a - std_b).sum(), rel=1e-10)


def test_frechet_of_covariances_that_do_not_commute():
    a, b = (moments(RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6))) for _ in range(2))
    wanted = np.square(a[0] - b[0]).sum() + np.trace(a[1] + b[1] - 2 * np.real(sqrtm(a[1] @ b[1])))
    assert frechet_distance(*a, *b) == pytest.approx(wanted, rel=1e-6)


def test_frechet_of_singular_covariances():
    """Along axes that the other does not have: nothing overlaps."""
    a, b = np.diag([4.0, 0, 0]), np.diag([0, 9.0, 0])
    assert frechet_distance(np.zeros(3), a, np.zeros(3), b) == pytest.approx(13, rel=1e-12)
    assert frechet_distance(np.zeros(3), a, np.ones(3), a) == pytest.approx(3, rel=1e-12)
    assert frechet_distance(np.zeros(3), 0 * a, np.zeros(3), 0 * a) == 0


@pytest.mark.parametrize("count", [30, 500])
def test_identical_sets_are_at_no_distance(count):
    """Also where there are fewer samples than dimensions; features as Inception's: positive, of very unequal spread."""
    x = np.abs(RNG.normal(size=(count, 200)) * np.geomspace(1, 1e-3, 200))
    mean, covariance = moments(x)
    assert abs(frechet_distance(mean, covariance, mean, covariance)) < 1e-6 * np.trace(covariance)


def test_fewer_samples_than_dimensions():
    """Two samples each: a covariance of rank one, whose distance is that of the standard deviations along a line."""
    x, y = np.zeros((2, 2, 50))
    x[:, 3], y[:, 3] = (-1, 1), (-3, 3)
    got = frechet_distance(*moments(x), *moments(y))
    assert got == pytest.approx((np.std([-3, 3], ddof=1) - np.std([-1, 1], ddof=1)) ** 2, rel=1e-9)


@pytest.mark.parametrize("sizes", [(100,), (1, 99), (13,) * 7 + (9,), (1,) * 100])
def test_moments_of_a_stream(sizes):
    x = RNG.normal(size=(100, 7)) + 1000
    stream = iter(np.split(x.astype(np.float32), np.cumsum(sizes)[:-1]))
    got = features.summarise(stream, keep=True)
    exact = x.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(got.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(got.covariance, np.cov(exact, rowvar=False), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(got.vectors, x.astype(np.float32))
    assert got.count == 100


def test_only_so_many_of_a_stream():
    pieces = [np.arange(4), np.arange(4, 8), np.arange(8, 12)]
    for count in (3, 4, 7, 12, 100):
        np.testing.assert_array_equal(np.concatenate(list(features.limited(pieces, count))), np.arange(min(count, 12)))


def test_kid_by_a_double_loop():
    x, y = RNG.normal(size=(2, 12, 5))

    def k(a, b):
        return (sum(a * b) / 5 + 1) ** 3

    pairs = [(i, j) for i in range(12) for j in range(12)]
    within = sum(k(v[i], v[j]) for v in (x, y) for i, j in pairs if i != j) / (12 * 11)
    across = sum(k(x[i], y[j]) for i, j in pairs) / 144
    assert kid.mmd2(x, y) == pytest.approx(within - 2 * across, rel=1e-12)


def test_kid_is_unbiased_and_sees_a_difference():
    x, y = RNG.normal(size=(2, 3000, 8))
    mean, std = kid.kid(x, y, 100, 100, 0)
    assert std > 0
    assert abs(mean) < 3 * std / 10
    assert kid.kid(x, y + 1, 20, 100, 0)[0] > 20 * std
    assert kid.kid(x, y, 5, 50, 1) != kid.kid(x, y, 5, 50, 2)
    assert kid.kid(x, y, 5, 50, 1) == kid.kid(x, y, 5, 50, 1)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_by_brute_force(neighbours):
    real, generated = RNG.normal(size=(60, 4)), 0.5 * RNG.normal(size=(45, 4)) + 0.3

    def inside(points, balls):
        covered = 0
        for p in points:
            hit = False
            for i, centre in enumerate(balls):
                others = sorted(np.linalg.norm(centre - other) for j, other in enumerate(balls) if j != i)
                hit |= np.linalg.norm(p - centre) <= others[neighbours - 1]
            covered += hit
        return covered / len(points)

    got = precision_recall.precision_and_recall(real, generated, neighbours)
    assert got == (inside(generated, real), inside(real, generated))
    assert 0 < got[1] < got[0], "narrower samples are precise and miss data"


def test_precision_and_recall_at_their_ends():
    x = RNG.normal(size=(50, 3))
    assert precision_recall.precision_and_recall(x, x) == (1, 1)
    assert precision_recall.precision_and_recall(x, x + 100) == (0, 0)
    some = np.repeat(x[:1], 20, 0)  # one mode
    precision, recall = precision_recall.precision_and_recall(x, some)
    assert precision == 1
    assert recall <= 1 / 50


def test_detection_by_counting():
    inside, outside = RNG.normal(size=80) + 1, RNG.normal(size=60)
    inside[:5] = outside[:5]  # ties count half
    got = ood.detection(inside, outside)
    wins = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert got.auroc == pytest.approx(np.mean(wins), rel=1e-12)
    threshold = np.sort(inside)[::-1][int(np.ceil(0.95 * 80)) - 1]  # keeps 76 of 80
    assert got.fpr95 == pytest.approx(np.mean(outside >= threshold), rel=1e-12)
    precision, recall, _ = precision_recall_curve(np.repeat([1, 0], (80, 60)), np.concatenate([inside, outside]))
    assert got.aupr == pytest.approx(auc(recall, precision), abs=0.01)
    assert ood.detection(inside + 100, outside) == pytest.approx((1, 1, 0))
    assert ood.detection(inside - 100, outside).auroc == 0


def test_the_interval_is_as_wide_as_theory_says():
    """Against the variance of the Mann-Whitney statistic by DeLong et al. (1988), Biometrics 44."""
    inside, outside = RNG.normal(size=200) + 1, RNG.normal(size=150)
    placed = (inside[:, None] > outside).astype(float)
    deviation = np.sqrt(placed.mean(1).var(ddof=1) / 200 + placed.mean(0).var(ddof=1) / 150)
    low, high = ood.bootstrap(inside, outside, 500, 0)
    assert high.auroc - low.auroc == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    assert low.auroc < ood.detection(inside, outside).auroc < high.auroc
