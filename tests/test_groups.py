"""Several batches through a network as one are the same as each by itself: outputs, gradients, running averages."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sintrovae_jax import objectives, parallel, seeds, train_state, train_step
from sintrovae_jax.models import Posterior, Stage, conv, mlp, style, two_encoder

SIZE, Z, BATCH = 8, 4, 3
SHAPE = (SIZE, SIZE, 3)
FAMILIES = {
    "mlp": (mlp.Encoder((5,), Z), mlp.Decoder((5,), SHAPE)),
    "conv": (conv.Encoder((4,), Z), conv.Decoder((4,), SHAPE)),
    "style": (style.Encoder((4, 6), Z), style.Decoder((4, 6), Z, 3)),
    "two_encoder": (
        two_encoder.Encoder((4, 8), 3, 5, Z, 2),
        two_encoder.Decoder((4, 8), 3, 2, SHAPE),
    ),
}
HYPER = dict.fromkeys(objectives.Hyper._fields, 1.0) | {"alpha": 2.0, "scale": 1 / 192, "gamma_r": 0.5, "blend": 0.3}


class Apart(nn.Module):
    """A network that is given every group by itself."""

    inner: nn.Module
    z_dim: int = Z

    def __call__(self, inputs, groups=1, **options):
        outputs = [self.inner(some, **options) for some in jnp.split(inputs, groups)]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def widened(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)


def in_one_step(networks, static, state, x, noise, hyper, labels=None):
    def step(x):
        middle, terms, decodings = train_step.encoder_update(networks, static, state, x, noise, hyper, (), labels)
        after, loss = train_step.decoder_update(networks, static, middle, x, noise, hyper, decodings, (), labels)
        return after, terms | loss

    return jax.tree.map(lambda a: a[0], jax.jit(jax.vmap(step, axis_name=parallel.AXIS))(x[None]))


@pytest.mark.soak
def test_a_step_is_the_same_with_its_passes_apart():
    """Terms and gradients; `optax.identity` hands back the gradient itself, so that it is what parameters move by."""
    with jax.enable_x64(True):
        encoder, decoder = FAMILIES["mlp"]
        nets = train_state.Networks(encoder, decoder, optax.identity(), optax.identity())
        apart = nets._replace(encoder=Apart(encoder), decoder=Apart(decoder))
        state = widened(train_state.create(nets, 1, SHAPE, Z))
        x = jnp.asarray(np.random.default_rng(0).random((BATCH, *SHAPE)))
        keys = parallel.example_keys(seeds.key(0), jnp.int32(0), jnp.arange(BATCH))
        noise, hyper = train_step.draw_noise(keys, Z), objectives.Hyper(**HYPER)
        noise = noise._replace(**{name: widened(getattr(noise, name)) for name in noise._fields if name != "keys"})
        static = train_step.Static(use_gamma_r=True)

        def inner(network):
            return network.replace(
                params={"inner": network.params}, stats={name: {"inner": tree} for name, tree in network.stats.items()}
            )

        together, terms = in_one_step(nets, static, state, x, noise, hyper)
        wrapped = state.replace(encoder=inner(state.encoder), decoder=inner(state.decoder))
        separate, same = in_one_step(apart, static, wrapped, x, noise, hyper)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
        jax.tree.map(close, terms, same)
        jax.tree.map(close, together.encoder.params, separate.encoder.params["inner"])
        jax.tree.map(close, together.decoder.params, separate.decoder.params["inner"])
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), together.decoder.params, state.decoder.params)
        assert max(jax.tree.leaves(moved)) > 1e-3, "a gradient of zeros proves nothing"


@pytest.mark.soak
@pytest.mark.parametrize("family", ["conv", "style", "two_encoder"])
def test_a_pass_is_the_same_with_its_batches_apart(family):
    """Outputs and gradients in training, of families whose passes are like others' in a step; with BatchNorm, too."""
    rng, both = np.random.default_rng(0), (slice(0, BATCH), slice(BATCH, None))
    with jax.enable_x64(True):
        keys, options = None, {}
        if family == "style":
            keys = parallel.example_keys(seeds.key(0), jnp.int32(0), jnp.arange(2 * BATCH))
            options = {"stage": Stage(1, 0.3)}
        inputs = rng.random((2 * BATCH, *SHAPE)), rng.normal(size=(2 * BATCH, Z))
        for network, x, of_pass in zip(FAMILIES[family], inputs, (None, keys), strict=True):
            first = widened(jax.jit(network.init)(jax.random.key(0), x[:1].astype(np.float32)))
            run = outputs_and_gradients(network, first, options)
            wanted = run(x, of_pass, groups=2, mix=True)
            # Only samples of the prior, the last group, are mixed.
            parts = [run(x[i], of_pass if of_pass is None else of_pass[i], 1, i is both[1]) for i in both]
            joined = jax.tree.map(lambda *some: np.concatenate(some), *(part[:2] for part in parts))
            got = *joined, jax.tree.map(np.add, *(part[2] for part in parts))
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), got, wanted)
            assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted[-1])) > 1e-3


def outputs_and_gradients(network, variables, options):
    """A function of a pass: what the network gives, and the gradients of its input and parameters."""
    params, rest = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}

    @functools.partial(jax.jit, static_argnames=("groups", "mix"))
    def run(x, keys, groups, mix):
        own = options if keys is None else options | {"keys": keys, "mix": mix}

        @functools.partial(jax.vmap, axis_name=parallel.AXIS)
        def of_device(x):
            def apply(x, params):
                return network.apply({"params": params, **rest}, x, train=True, groups=groups, mutable=[], **own)[0]

            y, pull = jax.vjp(apply, x, params)
            return y, *pull(jax.tree.map(jnp.cos, y))

        return jax.tree.map(lambda a: a[0], of_device(jnp.asarray(x)[None]))

    return lambda x, keys, groups, mix: run(x, keys, groups, mix and keys is not None)


@pytest.mark.soak
def test_the_averages_of_each_role_are_those_of_its_own_group():
    decoder = FAMILIES["conv"][1]
    rng = np.random.default_rng(0)
    halves = [jnp.asarray(rng.normal(size=(BATCH, Z), loc=loc), jnp.float32) for loc in (0.0, 2.0)]
    variables = jax.jit(decoder.init)(jax.random.key(0), halves[0])

    def averages(z, groups):
        run = functools.partial(decoder.apply, variables, train=True, groups=groups, mutable=["batch_stats"])
        return jax.tree.map(lambda a: a[0], jax.jit(jax.vmap(run, axis_name=parallel.AXIS))(z[None])[1]["batch_stats"])

    both, *own = averages(jnp.concatenate(halves), 2), averages(halves[0], 1), averages(halves[1], 1)
    for role in range(2):
        jax.tree.map(lambda b, o, r=role: np.testing.assert_allclose(b[r], o[r], rtol=1e-5, atol=1e-6), both, own[role])
    jax.tree.map(lambda o: np.testing.assert_array_equal(o[0], o[1]), own[0])  # one group alone moves all
    apart = [np.abs(leaf[0] - leaf[1]).max() for leaf in jax.tree.leaves(both)]
    assert max(apart) > 1e-2


def test_a_pass_whose_averages_are_not_kept_moves_none():
    """The encoder has one role, and no averages for two groups."""
    encoder = FAMILIES["conv"][0]
    x = jnp.ones((2 * BATCH, *SHAPE))
    variables = jax.jit(encoder.init)(jax.random.key(0), x)
    run = functools.partial(encoder.apply, variables, train=True, groups=2, mutable=[])
    posterior, kept = jax.eval_shape(jax.vmap(run, axis_name=parallel.AXIS), x[None])
    assert isinstance(posterior, Posterior)
    assert not kept


@pytest.mark.soak
def test_only_the_last_group_is_mixed():
    decoder = FAMILIES["style"][1]
    z = jax.random.normal(jax.random.key(1), (2 * BATCH, Z))
    variables = jax.jit(decoder.init)(jax.random.key(0), z)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(2)))(jnp.arange(2 * BATCH))
    decode = functools.partial(decoder.apply, variables, groups=2, stage=Stage(1))
    plain, mixed = (jax.jit(functools.partial(decode, mix=mix))(z, keys=keys) for mix in (False, True))
    np.testing.assert_allclose(plain[:BATCH], mixed[:BATCH], rtol=1e-6)
    assert np.abs(plain[BATCH:] - mixed[BATCH:]).max() > 1e-3
