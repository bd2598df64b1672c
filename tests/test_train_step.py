"""The update rules against an independent float64 numpy implementation, and where gradients must not go."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sintrovae_jax import objectives, parallel, train_state, train_step
from sintrovae_jax.models import Posterior, layers, mlp

Z, SHAPE, BATCH = 2, (3,), 4
HYPER = objectives.Hyper(
    beta_rec=0.7,
    beta_kl=0.4,
    beta_neg=1.3,
    gamma=0.9,
    gamma_r=0.6,
    alpha=2.5,
    scale=0.3,
    intro_alpha=0.25,
    margin=1.5,
    learning_rate=1.0,
    ema=0.0,
)


def on_one_device(function, *args):
    """Calls a per-device function outside of pmap, with the axis it averages over."""

    @jax.jit
    def spread(*args):
        of_devices = jax.vmap(lambda _: function(*args), axis_name=parallel.AXIS)(jnp.zeros(1))
        return jax.tree.map(lambda x: x[0], of_devices)

    return spread(*args)


def make(objective, output="linear", shape=SHAPE, networks=None):
    """Networks whose 'optimiser' hands back the gradient itself, so that old - new parameters = gradient."""
    encoder, decoder = networks or (mlp.Encoder((5,), Z), mlp.Decoder((5,), shape, output))
    nets = train_state.Networks(encoder, decoder, optax.identity(), optax.identity())
    first = train_state.create(nets, 3, shape, encoder.z_dim)
    return (
        nets,
        objective,
        jax.tree.map(lambda x: x.astype(jax.dtypes.canonicalize_dtype(float)) if x.dtype == jnp.float32 else x, first),
    )


def draw(seed=0):
    rng = np.random.default_rng(seed)
    noise = train_step.Noise(*(rng.normal(size=(BATCH, Z)) for _ in train_step.Noise._fields))
    return rng.uniform(0.1, 0.9, size=(BATCH, *SHAPE)), noise


def gradient(before, after):
    return jax.tree.map(lambda a, b: np.asarray(a - b), before.params, after.params)


# --- an independent implementation ----------------------------------------------------------------------------------


def np_mlp(params, x, sigmoid=False):
    layers = [params[name]["dense"] for name in sorted(params)]
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    x = x @ layers[-1]["kernel"] + layers[-1]["bias"]
    return 1 / (1 + np.exp(-x)) if sigmoid else x


def np_posterior(params, x):
    out = np_mlp(params, x)
    return out[:, :Z], out[:, Z:]


def np_sample(posterior, eps):
    return posterior[0] + np.exp(posterior[1] / 2) * eps


def np_kl(posterior, std=1.0, weights=1.0):
    mean, logvar = posterior
    return (weights * 0.5 * (-1 - logvar + 2 * np.log(std) + (np.exp(logvar) + mean**2) / std**2)).sum(1)


NP_REC = {
    "mse": lambda x, y: ((x - y) ** 2).sum(1),
    "l1": lambda x, y: np.abs(x - y).sum(1),
    "bce": lambda x, y: -(x * np.log(y) + (1 - x) * np.log(1 - y)).sum(1),
}


class Reference:
    """L_E, L_D and the VAE's loss in numpy. `e0`, `d0` are the parameters that constants are made with.

    target: bootstrap's target decoder, if any.
    """

    def __init__(self, objective, x, noise, e0, d0, target=None):
        self.o, self.x, self.n, self.e0, self.d0, self.target = objective, x, noise, e0, d0, target
        self.rec = NP_REC[objective.reconstruction]
        self.z_p = objective.prior_std * noise.prior

    def decode(self, d, z):
        return np_mlp(d, z, sigmoid=self.o.reconstruction == "bce")

    def kl(self, posterior):
        return np_kl(posterior, self.o.prior_std, np.array(self.o.kl_weights or [1.0] * Z))

    def encoder_loss(self, e):
        h, d = HYPER, self.d0
        posterior = np_posterior(e, self.x)
        rec, kl = self.rec(self.x, self.decode(d, np_sample(posterior, self.n.real))), self.kl(posterior)
        recon = self.decode(d, np_sample(np_posterior(self.e0, self.x), self.n.real))  # a constant
        fake = self.decode(d, self.z_p)
        exps, kls = [], []
        for y, eps in ((recon, self.n.recon), (fake, self.n.fake)):
            q = np_posterior(e, y)
            rec_y = self.rec(y, self.decode(self.target or d, np_sample(q, eps)))
            exps.append(np.exp(-h.alpha * h.scale * (h.beta_rec * rec_y + h.beta_neg * self.kl(q))).mean())
            kls.append(self.kl(q))
        if self.o.name == "intro":
            hinge = sum(np.maximum(0, h.margin - k).mean() for k in kls)
            return h.beta_rec * rec.mean() + kl.mean() + h.intro_alpha * hinge
        return h.scale * (h.beta_rec * rec + h.beta_kl * kl).mean() + (exps[0] + exps[1]) / 2 / h.alpha

    def decoder_loss(self, d, e_new):
        h = HYPER
        z = np_sample(np_posterior(self.e0, self.x), self.n.real)  # of the encoder before its update; a constant
        rec = self.rec(self.x, self.decode(d, z))
        kls, recs = [], []
        for z_y, eps in ((z, self.n.recon_again), (self.z_p, self.n.fake_again)):
            y, y0 = self.decode(d, z_y), self.decode(self.d0, z_y)
            kls.append(self.kl(np_posterior(e_new, y)).mean())
            if self.target:  # gradient through target and latent, none through the decoding
                y0 = y
            y_hat = self.decode(self.target or d, np_sample(np_posterior(e_new, y0), eps))
            recs.append(self.rec(y0, y_hat).mean())
        if self.o.name == "intro":
            return h.beta_rec * rec.mean() + h.intro_alpha * sum(kls)
        gamma_r = h.gamma_r if self.o.use_gamma_r else 0.0
        generated = h.beta_kl * np.mean(kls) + gamma_r * h.beta_rec * np.mean(recs)
        return h.scale * (h.beta_rec * rec.mean() + h.gamma * generated)

    def vae_loss(self, e, d):
        q = np_posterior(e, self.x)
        rec = self.rec(self.x, self.decode(d, np_sample(q, self.n.real)))
        if self.o.name == "intro":  # whose KL of real data has no weight, and whose loss no scale
            return (HYPER.beta_rec * rec + self.kl(q)).mean()
        return HYPER.scale * (HYPER.beta_rec * rec + HYPER.beta_kl * self.kl(q)).mean()


def finite_difference(loss, params, step=1e-6):
    """Central differences of a scalar function of a tree, in float64."""
    leaves, tree = jax.tree.flatten(params)
    leaves = [np.array(leaf, np.float64) for leaf in leaves]
    grads = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, grad in zip(leaves, grads, strict=True):
        for i in np.ndindex(leaf.shape):
            kept = leaf[i]
            ends = []
            for sign in (1, -1):
                leaf[i] = kept + sign * step
                ends.append(loss(jax.tree.unflatten(tree, leaves)))
            leaf[i] = kept
            grad[i] = (ends[0] - ends[1]) / (2 * step)
    return jax.tree.unflatten(tree, grads)


def assert_close(got, wanted, rtol=1e-6, atol=1e-8):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, wanted)
    assert any(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(wanted)), "a gradient of zeros proves nothing"


# Every reconstruction error with every objective; of what does not meet in the formulas, every pair of values.
PRIORS = {"mse": (1.0, ()), "l1": (0.8, (0.5, 2.0)), "bce": (0.8, (0.5, 2.0))}
CASES = [
    train_step.Static(name, False, rec, *PRIORS[rec], use_gamma_r=gamma_r)
    for name, gamma_r in (("soft_intro", False), ("soft_intro", True), ("intro", False))
    for rec in NP_REC
]
CASES += [
    dataclasses.replace(CASES[3], prior_std=0.8, kl_weights=(0.5, 2.0), target_period=7),
    dataclasses.replace(CASES[4], prior_std=1.0, kl_weights=(), target_period=7),
    dataclasses.replace(CASES[2], target_period=7),
]


def name_of(o):
    return "-".join(map(str, [o.name, o.reconstruction, o.prior_std, o.use_gamma_r, o.target_period]))


@pytest.mark.parametrize("objective", CASES, ids=name_of)
def test_both_updates_equal_numpy(objective):
    with jax.enable_x64(True):
        output = "sigmoid" if objective.reconstruction == "bce" else "linear"
        nets, objective, before = make(objective, output)
        x, noise = draw()
        e0, d0 = jax.device_get((before.encoder.params, before.decoder.params))
        target = None
        if objective.target_period:
            target = jax.tree.map(lambda p: p * 0.7 + 0.05, d0)
            before = before.replace(target={"params": target})

        def both(state_, x, noise):
            middle, e_terms, decodings = train_step.encoder_update(nets, objective, state_, x, noise, HYPER)
            after, d_terms = train_step.decoder_update(nets, objective, middle, x, noise, HYPER, decodings)
            return middle, after, e_terms, d_terms

        middle, after, e_terms, d_terms = on_one_device(both, before, jnp.asarray(x), noise)
        reference = Reference(objective, x, noise, e0, d0, target)
        e_new = jax.device_get(middle.encoder.params)
        assert e_terms["loss_encoder"] == pytest.approx(reference.encoder_loss(e0), rel=1e-10)
        assert d_terms["loss_decoder"] == pytest.approx(reference.decoder_loss(d0, e_new), rel=1e-10)
        assert_close(gradient(before.encoder, middle.encoder), finite_difference(reference.encoder_loss, e0))
        wanted = finite_difference(lambda d: reference.decoder_loss(d, e_new), d0)
        assert_close(gradient(middle.decoder, after.decoder), wanted)


@pytest.mark.parametrize("name", ["vae", "soft_intro", "intro"])
@pytest.mark.parametrize("reconstruction", NP_REC)
def test_vae_update_equals_numpy(reconstruction, name):
    with jax.enable_x64(True):
        objective = train_step.Static(name=name, vae=True, reconstruction=reconstruction, kl_weights=(0.5, 2.0))
        nets, objective, before = make(objective, "sigmoid" if reconstruction == "bce" else "linear")
        x, noise = draw()
        after, terms = on_one_device(
            functools.partial(train_step.vae_update, nets, objective), before, jnp.asarray(x), noise, HYPER
        )
        e0, d0 = jax.device_get((before.encoder.params, before.decoder.params))
        reference = Reference(objective, x, noise, e0, d0)
        assert terms["loss_encoder"] == pytest.approx(reference.vae_loss(e0, d0), rel=1e-10)
        wanted = finite_difference(lambda e: reference.vae_loss(e, d0), e0)
        assert_close(gradient(before.encoder, after.encoder), wanted)
        wanted = finite_difference(lambda d: reference.vae_loss(e0, d), d0)
        assert_close(gradient(before.decoder, after.decoder), wanted)


# --- stop-gradients: networks small enough to see which paths are left ------------------------------------------------


class LinearEncoder(nn.Module):
    """mean = a·x, logvar = 0."""

    z_dim: int = 1

    @nn.compact
    def __call__(self, x, train=False, groups=1):
        a = self.param("a", nn.initializers.ones, (x.shape[-1], self.z_dim))
        return Posterior(x @ a, jnp.zeros((x.shape[0], self.z_dim)))


class LinearDecoder(nn.Module):
    """x̂ = w·z."""

    @nn.compact
    def __call__(self, z, train=False, groups=1):
        return z @ self.param("w", nn.initializers.ones, (z.shape[-1], 2))


def linear_state(a, w):
    nets, objective, first = make(train_step.Static(), shape=(2,), networks=(LinearEncoder(), LinearDecoder()))
    encoder = first.encoder.replace(params={"a": jnp.array(a, float)})
    decoder = first.decoder.replace(params={"w": jnp.array(w, float)})
    return nets, objective, first.replace(encoder=encoder, decoder=decoder)


def noise_of(**values):
    zeros = dict.fromkeys(train_step.Noise._fields, np.zeros((1, 1)))
    return train_step.Noise(**(zeros | {k: np.array([[v]], float) for k, v in values.items()}))


ONLY_REC = HYPER._replace(beta_kl=0.0, beta_neg=0.0, beta_rec=1.0, gamma=1.0, gamma_r=1.0)


def test_rec_of_recon_is_no_path_from_its_target_to_the_encoder():
    # With a = 0 all images are 0 and x is orthogonal to w: every path is zero but the one through the *target* of
    # rec(recon), whose error is w·noise. The official 2D and image code leaves that path open.
    nets, objective, before = linear_state([[0.0], [0.0]], [[1.0, 0.0]])
    x = jnp.array([[0.0, 1.0]])
    noise = noise_of(recon=0.5)

    def update(x):
        return train_step.encoder_update(nets, objective, before, x, noise, ONLY_REC)[0]

    after = on_one_device(update, x)
    np.testing.assert_array_equal(after.encoder.params["a"], 0.0)
    # The same point with x in w's direction does move: it is not the set-up that is dead.
    assert np.abs(on_one_device(update, jnp.array([[1.0, 0.0]])).encoder.params["a"]).max() > 0


def test_gamma_r_has_no_gradient_through_target_or_latent():
    # recon = w·z equals x, so rec(x) is flat; its re-encoded latent is 0, so the outer decoding is flat; but its error
    # is not 0, so a gradient through the target w·z or the latent a·w·z + noise would show.
    nets, objective, before = linear_state([[1.0], [0.0]], [[1.0, 2.0]])
    objective = dataclasses.replace(objective, use_gamma_r=True)
    z = 0.5
    x = jnp.array([[z, 2 * z]])  # a·x = z with no noise, and w·z = x
    hyper = ONLY_REC._replace(beta_rec=1.0)

    def both(noise):
        # The encoder stays as it is: its update is computed with a learning rate of 0.
        middle, _, decodings = train_step.encoder_update(
            nets, objective, before, x, noise, hyper._replace(learning_rate=0.0)
        )
        return train_step.decoder_update(nets, objective, middle, x, noise, hyper, decodings)[0]

    flat = on_one_device(both, noise_of(recon_again=-z))
    np.testing.assert_array_equal(flat.decoder.params["w"], before.decoder.params["w"])
    moved = on_one_device(both, noise_of(recon_again=-z / 2))
    assert np.abs(moved.decoder.params["w"] - before.decoder.params["w"]).max() > 0


def test_each_update_leaves_the_other_network_alone():
    nets, objective, before = make(train_step.Static(use_gamma_r=True))
    x, noise = draw()

    def both(state_):
        middle, _, decodings = train_step.encoder_update(nets, objective, state_, x, noise, HYPER)
        return middle, train_step.decoder_update(nets, objective, middle, x, noise, HYPER, decodings)[0]

    middle, after = on_one_device(both, before)
    jax.tree.map(np.testing.assert_array_equal, middle.decoder, before.decoder)
    jax.tree.map(np.testing.assert_array_equal, after.encoder, middle.encoder)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient(before.encoder, middle.encoder)))


def test_kl_of_generated_images_reaches_the_decoder():
    nets, objective, before = make(train_step.Static())
    x, noise = draw()

    def update(hyper):
        middle, _, decodings = train_step.encoder_update(nets, objective, before, x, noise, hyper)
        return train_step.decoder_update(nets, objective, middle, x, noise, hyper, decodings)[0]

    only_kl = HYPER._replace(beta_rec=0.0)
    moved = gradient(before.decoder, on_one_device(update, only_kl).decoder)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(moved))
    still = gradient(before.decoder, on_one_device(update, only_kl._replace(gamma=0.0)).decoder)
    assert all((g == 0).all() for g in jax.tree.leaves(still))


# --- the composed step ------------------------------------------------------------------------------------------------


NETS = train_state.Networks(
    mlp.Encoder((5,), Z), mlp.Decoder((5,), SHAPE), optax.scale_by_adam(), optax.scale_by_adam()
)


@functools.cache
def fresh(**copies):
    return jax.jit(functools.partial(train_state.create, NETS, 0, SHAPE, Z, **copies))()


@functools.cache
def dispatch(objective, nets=NETS):
    """`train_step` on one device, a function of (state, batches, hypers, key) that is compiled once for all tests."""
    step = functools.partial(train_step.train_step, nets, objective)
    return jax.jit(lambda *args: on_one_device(step, *args))


def arguments(first, steps, batch_size=8):
    """The batches, hyper-parameters and key of so many steps."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(100, batch_size, *SHAPE))[first : first + steps], jnp.float32)
    batches = {"x": x, "index": jnp.tile(jnp.arange(batch_size), (steps, 1))}
    hypers = jax.tree.map(lambda v: jnp.full(steps, v), HYPER._replace(learning_rate=1e-2))
    return batches, hypers, jax.random.key(0)


@pytest.mark.parametrize("vae", [False, True])
def test_scanning_changes_nothing_and_a_step_counts_the_terms_it_has(vae):
    run = dispatch(train_step.Static(vae=vae))
    at_once, terms = run(fresh(), *arguments(0, 6))
    assert int(at_once.step) == 6
    counts = {name: int(term[1]) for name, term in terms.items()}
    assert counts["rec_real"] == counts["loss_decoder"] == 6
    assert counts["kl_fake"] == counts["exp_elbo_fake"] == (0 if vae else 6)
    assert np.isinf(terms["rec_real"][2])

    by_two = fresh()
    for first in (0, 2, 4):
        by_two, _ = run(by_two, *arguments(first, 2))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), at_once, by_two)


@pytest.mark.parametrize("vae", [False, True])
def test_two_devices_take_the_step_of_one(vae):
    static, (batches, hypers, key) = train_step.Static(vae=vae, use_gamma_r=True), arguments(0, 2)
    one, terms = dispatch(static)(fresh(), batches, hypers, key)
    halves = jax.tree.map(lambda a: jnp.stack(jnp.split(a, 2, axis=1)), batches)
    step = functools.partial(train_step.train_step, NETS, static)
    spread = jax.vmap(step, (None, 0, None, None), axis_name=parallel.AXIS)
    two, same = jax.jit(spread)(fresh(), halves, hypers, key)
    for device in range(2):
        got = jax.tree.map(lambda a, device=device: a[device], (two, same))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, (one, terms))


def test_every_step_has_noise_of_its_own():
    run, args = dispatch(train_step.Static()), arguments(0, 2)
    first, again, later = (run(fresh().replace(step=jnp.int32(step)), *args)[1] for step in (0, 0, 1))
    for name in ("rec_real", "kl_fake"):  # of what is sampled with the noise of the posterior, and of the prior
        assert first[name][0] == again[name][0] != later[name][0]


def test_the_vae_phase_is_the_vae():
    statics = (train_step.Static(vae=True), train_step.Static(name="vae"), train_step.Static(name="vae", vae=True))
    after = [dispatch(static)(fresh(), *arguments(0, 2))[0] for static in statics]
    for other in after[1:]:
        jax.tree.map(np.testing.assert_array_equal, after[0], other)


@functools.cache
def followed():
    """A state with both copies, and the states after each of 8 steps, one dispatch each."""
    step = dispatch(train_step.Static(use_gamma_r=True, target_period=3))
    states, (batches, hypers, key) = [fresh(target=True, ema=True)], arguments(0, 8)
    hypers = hypers._replace(ema=jnp.full(8, 0.75))
    for i in range(8):
        inputs = jax.tree.map(lambda x: x[i : i + 1], (batches, hypers))  # noqa: B023
        states.append(step(states[-1], *inputs, key)[0])
    return states


def test_the_target_decoder_is_the_decoder_of_the_last_refresh():
    start, *states = followed()
    refreshed = start.decoder.variables
    jax.tree.map(np.testing.assert_array_equal, start.target, refreshed)
    for now in states:
        if int(now.step) % 3 == 0:
            refreshed = now.decoder.variables
        jax.tree.map(np.testing.assert_array_equal, now.target, refreshed)


def test_the_average_is_exponential_and_starts_as_a_copy():
    start, *states = followed()
    wanted = jax.device_get(start.variables)
    jax.tree.map(np.testing.assert_array_equal, start.ema, wanted)
    for now in states:
        wanted = jax.tree.map(lambda mean, new: 0.75 * mean + 0.25 * np.asarray(new), wanted, now.variables)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), now.ema, wanted)
    jax.tree.map(np.testing.assert_array_equal, now.best_variables, now.ema)
    lag = jax.tree.map(lambda a, b: np.abs(a - b).max(), now.ema["decoder"]["params"], now.decoder.params)
    assert max(jax.tree.leaves(lag)) > 1e-4


def test_the_vae_phase_uses_the_decoder_itself():
    run, args = dispatch(train_step.Static(vae=True, target_period=100)), arguments(0, 2)
    odd = fresh().replace(target=jax.tree.map(lambda p: p + 1, fresh().decoder.variables))
    (with_target, _), (without, _) = (run(start, *args) for start in (odd, fresh()))
    jax.tree.map(np.testing.assert_array_equal, with_target.replace(target=None), without)


def test_bytes_are_the_same_images_as_floats():
    batches, *args = arguments(0, 2)
    x = np.random.default_rng(0).integers(0, 256, batches["x"].shape).astype(np.uint8)
    both = [batches | {"x": jnp.asarray(b)} for b in (x, np.float32(x) / 255)]
    after = [dispatch(train_step.Static())(fresh(), batches, *args)[0] for batches in both]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *after)


def test_the_first_step_that_is_not_finite_is_named():
    batches, *args = arguments(0, 6)
    batches["x"] = batches["x"].at[2].set(jnp.nan)
    _, terms = dispatch(train_step.Static())(fresh(), batches, *args)
    assert float(terms["rec_real"][2]) == 2


def test_noise_belongs_to_the_example_not_to_its_place_in_the_shard():
    key = jax.random.key(5)

    def draw(at, indices):
        noise = train_step.draw_noise(parallel.example_keys(key, jnp.int32(at), indices), 3)
        return noise._replace(keys=jax.random.key_data(noise.keys))

    whole, half = draw(7, jnp.arange(8)), draw(7, jnp.arange(4, 8))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[4:], whole), half)
    later = draw(8, jnp.arange(8))
    values = np.concatenate([np.ravel(x) for x in (*whole, *later)])
    assert len(np.unique(values)) == len(values), "two draws share their noise"


class NormEncoder(nn.Module):
    z_dim: int = Z

    @nn.compact
    def __call__(self, x, train=False, groups=1):
        x = layers.BatchNorm(x.shape[-1], layers.Statistics(train, groups))(x)
        out = nn.Dense(2 * self.z_dim)(x)
        return Posterior(out[:, : self.z_dim], out[:, self.z_dim :])


class NormDecoder(nn.Module):
    @nn.compact
    def __call__(self, z, train=False, groups=1, role="posterior"):
        return nn.Dense(3)(layers.BatchNorm(z.shape[-1], layers.decoder_statistics(train, groups, role))(z))


@pytest.mark.parametrize("phase", ["adversarial", "vae"])
def test_running_averages_are_kept_apart_by_role(phase):
    nets = train_state.Networks(NormEncoder(), NormDecoder(), optax.identity(), optax.identity())
    before = train_state.create(nets, 0, SHAPE, Z)
    x, noise = draw()
    x, noise = jnp.asarray(x, jnp.float32), jax.tree.map(lambda n: jnp.asarray(n, jnp.float32), noise)
    frozen, static = HYPER._replace(learning_rate=0.0), train_step.Static()

    def update(state_, x, noise):
        if phase == "vae":
            return train_step.vae_update(nets, static, state_, x, noise, frozen)[0]
        middle, _, decodings = train_step.encoder_update(nets, static, state_, x, noise, frozen)
        return train_step.decoder_update(nets, static, middle, x, noise, frozen, decodings)[0]

    after = on_one_device(update, before, x, noise)
    got = after.encoder.stats["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(got["mean"], [0.1 * x.mean(0)], rtol=1e-5)
    np.testing.assert_allclose(got["var"], [0.9 + 0.1 * x.var(0)], rtol=1e-5)

    normed = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    dense = before.encoder.params["Dense_0"]
    out = np.asarray(normed @ dense["kernel"] + dense["bias"])
    z = out[:, :Z] + np.exp(out[:, Z:] / 2) * noise.real
    prior = noise.prior if phase == "adversarial" else z  # nothing else has been decoded
    got = after.decoder.stats["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(got["mean"], 0.1 * np.stack([z.mean(0), prior.mean(0)]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got["var"], 0.9 + 0.1 * np.stack([z.var(0), prior.var(0)]), rtol=1e-4, atol=1e-6)
    decoded = [nets.decoder.apply(after.decoder.variables, noise.prior, role=role) for role in ("posterior", "prior")]
    assert (np.abs(decoded[0] - decoded[1]).max() > 1e-3) == (phase == "adversarial")


def test_bfloat16_networks_keep_float32_losses_and_parameters():
    encoder, decoder = mlp.Encoder((5,), Z, jnp.bfloat16), mlp.Decoder((5,), SHAPE, dtype=jnp.bfloat16)
    narrow, args = NETS._replace(encoder=encoder, decoder=decoder), arguments(0, 2)
    after, terms = dispatch(train_step.Static(), narrow)(fresh(), *args)
    assert {x.dtype.name for x in jax.tree.leaves((after.encoder.params, terms))} == {"float32"}
    _, wanted = dispatch(train_step.Static())(fresh(), *args)
    for name in ("loss_encoder", "loss_decoder", "rec_real", "kl_real"):
        np.testing.assert_allclose(terms[name][0], wanted[name][0], rtol=0.02)


# --- cost -------------------------------------------------------------------------------------------------------------


def flops(compiled):
    return compiled.cost_analysis()["flops"]


def test_a_step_costs_what_its_passes_cost():
    """11 decoder and 13 encoder forwards, counted by the compiler; the official order of things costs 19 + 13."""
    batch, channels = 512, (256, 256, 256, 256)
    encoder, decoder = mlp.Encoder(channels, 2), mlp.Decoder(channels, (2,))
    nets = train_state.Networks(encoder, decoder, optax.scale_by_adam(), optax.scale_by_adam())
    abstract = jax.eval_shape(lambda: train_state.create(nets, 0, (2,), 2))
    x = jax.ShapeDtypeStruct((batch, 2), jnp.float32)

    def forward(network, module):
        return flops(jax.jit(module.apply).lower(network.variables, x).compile())

    def leading(tree, *axes):
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct((*axes, *s.shape), s.dtype), tree)

    index = jax.ShapeDtypeStruct((batch,), jnp.int32)
    hyper = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.float32), HYPER)
    step = jax.pmap(
        functools.partial(train_step.train_step, nets, train_step.Static()),
        axis_name=parallel.AXIS,
        in_axes=(0, 0, 0, None),
        devices=jax.devices()[:1],
    )
    batches = leading({"x": x, "index": index}, 1, 1)
    lowered = step.lower(leading(abstract, 1), batches, leading(hyper, 1, 1), jax.random.key(0))
    passes = 11 * forward(abstract.decoder, decoder) + 13 * forward(abstract.encoder, encoder)
    assert forward(abstract.decoder, decoder) > 2 * batch * 3 * 256 * 256, "the count misses the matrix products"
    assert 0.95 * passes < flops(lowered.compile()) <= 1.05 * passes
