"""What is done for TPUs, on pairs of pixels or in another way, against what is done elsewhere."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sintrovae_jax import config, dispatch, models, parallel
from sintrovae_jax.models import conv, convolution, layers


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def with_gradients(function, *inputs):
    """The output, and the gradients of the inputs for a gradient of the output that is drawn."""

    @jax.jit
    def run(*inputs):
        y, pull = jax.vjp(function, *inputs)
        return y, *pull(drawn(*y.shape))

    return run(*inputs)


@pytest.mark.parametrize(
    ("ours", "plain", "kernel"),
    [
        (lambda x, k: convolution.convolve_pairs(convolution.pairs(x), k), convolution.convolve, (3, 3, 5, 6)),
        (lambda x, k: convolution.convolve_pairs(convolution.pairs(x), k), convolution.convolve, (5, 5, 5, 6)),
        (convolution.convolve_up_pairs, convolution.convolve_up, (3, 3, 5, 6)),
        (convolution._up_by_zeros, convolution._up_by_parts, (3, 3, 5, 6)),
        (convolution._up_in_two_steps, convolution._up_by_parts, (3, 3, 5, 6)),
        (convolution._half_by_stride, convolution._half_by_blocks, (4, 4, 5, 6)),
        (lambda x, k: convolution.upsample_pairs(x) * k.sum(), lambda x, k: convolution.upsample(x) * k.sum(), (1,)),
        (
            lambda x, k: convolution.pool_pairs(convolution.pairs(x)) * k.sum(),
            lambda x, k: convolution.pool(x) * k.sum(),
            (1,),
        ),
    ],
)
def test_both_ways_of_one_function_and_their_gradients(ours, plain, kernel):
    inputs = drawn(2, 8, 6, 5), drawn(*kernel)
    got, expected = with_gradients(ours, *inputs), with_gradients(lambda x, k: by_pairs(plain(x, k), ours), *inputs)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def by_pairs(y, ours):
    """y, in pairs where `ours` gives them."""
    got = jax.eval_shape(ours, jax.ShapeDtypeStruct((2, 8, 6, 5), jnp.float32), jnp.zeros((3, 3, 5, 6)))
    return y if got.shape == y.shape else convolution.pairs(y)


NETWORKS = {
    "encoder": (conv.Encoder((4, 6), 3), (2, 16, 16, 3), lambda posterior: posterior.mean + 2 * posterior.logvar),
    "decoder": (conv.Decoder((4, 6), (16, 16, 3)), (2, 3), lambda x: x),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("train", [True, False])
def test_networks_on_pairs_are_the_same_functions(name, train):
    network, shape, read = NETWORKS[name]
    x = drawn(*shape)
    variables = jax.jit(network.init)(jax.random.key(0), x)

    def passes(network):
        @jax.jit
        @functools.partial(jax.vmap, axis_name=parallel.AXIS)
        def run(x):
            def function(params, x):
                y, stats = network.apply({**variables, "params": params}, x, train=train, mutable=["batch_stats"])
                return read(y), stats

            y, pull, stats = jax.vjp(function, variables["params"], x, has_aux=True)
            return y, stats, pull(jnp.cos(y))

        return run(jnp.stack([x, 2 * x]))

    assert models.paired(network) != network
    got, expected = passes(models.paired(network)), passes(network)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, expected)


def test_wide_layers_are_not_paired():
    assert convolution.room_for_two(64)
    assert not convolution.room_for_two(65)


@pytest.mark.parametrize("sums", [layers._products, layers._reductions])  # on CPUs, and elsewhere
@pytest.mark.parametrize("paired", [False, True])
def test_batchnorm_is_that_of_flax_with_its_gradients(paired, sums, monkeypatch):
    monkeypatch.setattr(layers, "_products", sums)
    x, grad = 2 * drawn(2, 3, 4, 4, 6) + 1, drawn(2, 3, 4, 4, 6)
    params = {"scale": drawn(6), "bias": drawn(6)[::-1]}
    stats = {"batch_stats": {"mean": drawn(6), "var": drawn(6) ** 2}}
    as_flax = nn.BatchNorm(False, momentum=layers.MOMENTUM, epsilon=1e-5, axis_name=parallel.AXIS)

    def passes(module, stats, *inputs):
        @jax.jit
        @functools.partial(jax.vmap, axis_name=parallel.AXIS)
        def run(x, grad):
            function = lambda p, x: module.apply({"params": p, **stats}, x, mutable=["batch_stats"])  # noqa: E731
            y, pull, new = jax.vjp(function, params, x, has_aux=True)
            of_params, of_x = pull(grad)
            return y.reshape(grad.shape), new, of_params, of_x

        return run(*inputs)

    shape = (2, 3, 4, 2, 12) if paired else x.shape
    ours = layers.BatchNorm(6, layers.Statistics(train=True))
    y, new, of_params, of_x = passes(
        ours, jax.tree.map(lambda a: a[None], stats), x.reshape(shape), grad.reshape(shape)
    )
    got = y.reshape(x.shape), jax.tree.map(lambda a: a[:, 0], new), of_params, of_x.reshape(x.shape)
    wanted = passes(as_flax, stats, x, grad)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, wanted)


def test_tpus_are_given_pairs_and_others_are_not():
    settings = config.read_recipe("configs/digits.py")
    networks, *_ = dispatch.from_config(settings)
    assert dispatch.suited(networks, jax.devices()) == networks
    for_tpus = dispatch.suited(networks, [types.SimpleNamespace(platform="tpu")])
    assert for_tpus.encoder.paired
    assert for_tpus.decoder.paired
    assert (for_tpus.encoder_tx, for_tpus.decoder_tx) == (networks.encoder_tx, networks.decoder_tx)
