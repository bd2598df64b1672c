"""The Chamfer distance: against loops over all pairs, a k-d tree, and the gradient of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from sintrovae_jax.chamfer import chamfer, nearest
from sintrovae_jax.objectives import RECONSTRUCTION_ERRORS


def clouds(n, m, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(batch, count, 3)).astype(np.float32) for count in (n, m)]


def plain(a, b):
    table = jnp.square(a[:, :, None] - b[:, None]).sum(-1)
    return table.min(2).sum(1) + table.min(1).sum(1)


@pytest.mark.parametrize(("n", "m"), [(17, 17), (5, 40), (1, 8), (64, 3)])
def test_it_is_the_sum_over_all_pairs(n, m):
    a, b = clouds(n, m)
    table = ((a[:, :, None].astype(np.float64) - b[:, None]) ** 2).sum(-1)
    np.testing.assert_allclose(chamfer(a, b), table.min(2).sum(1) + table.min(1).sum(1), rtol=1e-6)
    np.testing.assert_allclose(chamfer(a, a), 0)
    assert RECONSTRUCTION_ERRORS["chamfer"] is chamfer


@pytest.mark.parametrize("at_once", [1, 1_000, 10_000, 10**9])  # one row, pieces that do not divide, all
def test_the_nearest_are_those_of_a_tree(at_once):
    a, b = clouds(301, 173)
    forth, back = nearest(a, b, at_once)
    for i in range(len(a)):
        np.testing.assert_array_equal(forth[i], cKDTree(b[i]).query(a[i])[1])
        np.testing.assert_array_equal(back[i], cKDTree(a[i]).query(b[i])[1])


def test_gradients_are_those_of_the_plain_formula():
    a, b = clouds(33, 20)
    weights = jnp.array([1.0, -2.0, 0.5])
    got, wanted = (
        jax.grad(lambda a, b, f=f: (weights * f(a, b)).sum(), argnums=(0, 1))(a, b) for f in (chamfer, plain)
    )
    for ours, plainly in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, plainly, rtol=1e-5, atol=1e-6)


def test_the_table_is_never_in_memory():
    a, b = (jax.ShapeDtypeStruct((4, 2048, 3), jnp.float32),) * 2
    compiled = jax.jit(jax.grad(lambda a, b: chamfer(a, b).sum(), argnums=(0, 1))).lower(a, b).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 2048 * 2048 * 4 / 8


def test_half_precision_is_computed_in_float32_and_nan_stays():
    a, b = clouds(9, 9)
    assert chamfer(a.astype(jnp.bfloat16), b).dtype == jnp.float32
    b[1, 4, 0] = np.nan
    np.testing.assert_array_equal(np.isnan(chamfer(a, b)), [False, True, False])
