"""Learnt priors: the mixture against scipy, quadrature and differences; its part in a step; a run with one."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import metrics, stopped_after
from scipy import integrate, special, stats
from test_train_step import BATCH, HYPER, SHAPE, Z, on_one_device

import sintrovae_jax
from sintrovae_jax import config as configs
from sintrovae_jax import main, objectives, parallel, passes, priors, train_state, train_step
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import Posterior, mlp

SETTING = priors.Setting(components=3, kl_samples=4, rate=1.0, responsibility=0.0, std=1.0)


def mixture(k=3, z=Z, seed=0):
    rng = np.random.default_rng(seed)
    return priors.Mixture(*(np.float32(rng.normal(size=shape)) for shape in ((k, z), (k, z), (k,))))


def weights(of):
    return np.exp(of.logits - special.logsumexp(of.logits))


# --- the distribution -------------------------------------------------------------------------------------------------


def test_the_density_is_that_of_scipys_normals():
    of, z = mixture(), np.random.default_rng(1).normal(size=(7, Z)).astype(np.float32)
    parts = zip(weights(of), of.mean, np.exp(of.logvar / 2), strict=True)
    joint = np.stack([np.log(w) + stats.norm.logpdf(z, m, std).sum(1) for w, m, std in parts], axis=1)
    without = Z / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(of.log_prob(z) - without, special.logsumexp(joint, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of.responsibilities(z), special.softmax(joint, 1), rtol=1e-4, atol=1e-6)


def test_the_kl_is_that_of_quadrature():
    of, mean, std = mixture(3, 1), 0.3, 0.7

    def integrand(z):
        q = stats.norm.logpdf(z, mean, std)
        p = special.logsumexp(np.log(weights(of)) + stats.norm.logpdf(z, of.mean[:, 0], np.exp(of.logvar[:, 0] / 2)))
        return np.exp(q) * (q - p)

    expected = integrate.quad(integrand, mean - 10 * std, mean + 10 * std)[0]
    noise = np.random.default_rng(2).normal(size=(1, 200_000, 1))
    found = of.kl(jnp.array([[mean]]), jnp.array([[2 * np.log(std)]]), noise)
    assert float(found[0]) == pytest.approx(expected, abs=0.01)


def test_of_one_component_the_kl_is_exact():
    of = priors.Mixture(np.zeros((1, Z), np.float32), np.full((1, Z), 2 * np.log(1.5), np.float32), np.zeros(1))
    mean, logvar = np.random.default_rng(3).normal(size=(2, 5, Z)).astype(np.float32)
    found = of.kl(mean, logvar, np.zeros((5, 0, Z)))
    np.testing.assert_allclose(found, objectives.kl(mean, logvar, 1.5), rtol=1e-5)


def test_a_fresh_mixture_has_the_variance_of_the_fixed_prior():
    key, setting = jax.random.key(0), priors.Setting(400, 1, 1.0, 0.0, 2.0)
    of = priors.create(key, setting, Z, optax.identity()).mixture
    total = np.exp(of.logvar).mean() + np.square(of.mean).mean()
    assert total == pytest.approx(4, rel=0.1)


# --- a step -----------------------------------------------------------------------------------------------------------

ENCODER, DECODER = mlp.Encoder((5,), Z), mlp.Decoder((5,), SHAPE, "linear")
# An 'optimiser' that hands back the gradient itself, so that old - new parameters = gradient.
NETS = train_state.Networks(ENCODER, DECODER, optax.identity(), optax.identity())
X = np.random.default_rng(0).uniform(0.1, 0.9, size=(BATCH, *SHAPE)).astype(np.float32)


def static(setting, **options):
    return train_step.Static(use_gamma_r=True, prior=setting, **options)


@functools.cache
def state_of(setting):
    first = jax.jit(lambda: train_state.create(NETS, 3, SHAPE, Z, learnt=setting))()
    if setting is None or setting.components == 1:
        return first
    return first.replace(prior=first.prior.replace(mixture=jax.tree.map(jnp.asarray, mixture(setting.components))))


@functools.cache
def step_of(of):
    batch = {"x": X, "index": np.arange(BATCH)}

    def step(state, hyper):
        return train_step.update(NETS, of, state, batch, hyper, jax.random.key(0))

    return jax.jit(functools.partial(on_one_device, step))


@functools.cache
def stepped(of, hyper=HYPER):
    """The state after one step, and what is logged."""
    return step_of(of)(state_of(of.prior), hyper)


def passes_of(of, state):
    keys = parallel.example_keys(jax.random.key(0), state.step, np.arange(BATCH))
    return passes.Passes(NETS, of, state, train_step.draw_noise(keys, Z), HYPER, ())


@pytest.mark.parametrize("vae", [True, False])
def test_one_component_that_learns_nothing_is_the_fixed_prior(vae):
    one = priors.Setting(components=1, kl_samples=1, rate=0.0, responsibility=0.0, std=1.0)
    (learnt, logged), (fixed, expected) = stepped(static(one, vae=vae)), stepped(static(None, vae=vae))
    for network in ("encoder", "decoder"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            learnt.variables[network],
            fixed.variables[network],
        )
    for name, value in expected.items():
        np.testing.assert_allclose(logged[name], value, rtol=1e-5, err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, learnt.prior.mixture, state_of(one).prior.mixture)


@pytest.mark.parametrize("vae", [True, False])
def test_the_prior_goes_down_the_kl_of_real_data_alone(vae):
    of = static(SETTING, vae=vae)
    before, after = state_of(SETTING), stepped(of)[0]
    net = passes_of(of, before)
    posterior = ENCODER.apply(before.encoder.variables, X)

    def loss(flat):
        shaped = jax.tree.unflatten(jax.tree.structure(before.prior.mixture), split(flat))
        return HYPER.scale * HYPER.beta_kl * float(np.mean(net.kl(posterior, mixture=shaped)))

    def split(flat):
        leaves = jax.tree.leaves(before.prior.mixture)
        parts = np.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
        return [jnp.asarray(part.reshape(leaf.shape), jnp.float32) for part, leaf in zip(parts, leaves, strict=True)]

    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(before.prior.mixture)]).astype(np.float64)
    h = 1e-2
    differences = np.array([(loss(flat + h * e) - loss(flat - h * e)) / (2 * h) for e in np.eye(len(flat))])
    moved = flat - np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(after.prior.mixture)])
    inside = np.ones(len(flat), bool)
    if not vae:  # the logvars at the bounds cannot move outwards
        inside[3 * Z : 6 * Z] = False
    np.testing.assert_allclose(moved[inside], differences[inside], rtol=0.05, atol=2e-4)
    assert np.abs(moved[inside]).max() > 1e-3


def test_samples_of_the_prior_come_from_its_components():
    of = priors.Setting(components=3, kl_samples=1, rate=1.0, responsibility=0.0, std=1.0)
    apart = priors.Mixture(
        jnp.array([[-50.0, 0], [0, 0], [50, 0]]), jnp.full((3, 2), -4.0), jnp.log(jnp.array([0.5, 0.1, 0.4]))
    )
    state = state_of(of)
    state = state.replace(prior=state.prior.replace(mixture=apart))
    keys = parallel.example_keys(jax.random.key(0), state.step, np.arange(4_000))
    net = passes.Passes(NETS, static(of), state, train_step.draw_noise(keys, Z), HYPER, ())
    z = np.asarray(net.latents())
    shares = [(np.abs(z[:, 0] - mean) < 5).mean() for mean in (-50, 0, 50)]
    np.testing.assert_allclose(shares, [0.5, 0.1, 0.4], atol=0.03)
    assert z[:, 1].std() == pytest.approx(np.exp(-2), rel=0.05)


def test_logvars_stay_within_what_they_spanned_when_the_adversarial_phase_began():
    hyper = HYPER._replace(learning_rate=1e3)
    free = stepped(static(SETTING, vae=True), hyper)[0].prior
    before = state_of(SETTING).prior.mixture.logvar
    assert (np.abs(free.mixture.logvar - before) > 1).any(), "the VAE phase is free"
    held = stepped(static(SETTING), hyper)[0].prior
    np.testing.assert_array_equal(held.low, before.min(0))
    np.testing.assert_array_equal(held.high, before.max(0))
    assert (held.mixture.logvar >= held.low).all() and (held.mixture.logvar <= held.high).all()
    later = priors.bounded(held.replace(mixture=held.mixture.replace(logvar=0 * before)))
    np.testing.assert_array_equal(later.high, held.high)


def unevenness(mean, logvar, devices=1):
    """The value and the gradient by the posterior's means, of the mean over devices as a step takes it."""
    state, of = state_of(SETTING), static(SETTING)

    def of_device(mean, logvar, keys):
        net = passes.Passes(NETS, of, state, train_step.draw_noise(keys, Z), HYPER, ())
        value, gradient = jax.value_and_grad(lambda m: net.unevenness(Posterior(m, logvar)))(mean)
        return parallel.pmean(value), gradient / devices

    keys = parallel.example_keys(jax.random.key(0), state.step, np.arange(len(mean)))
    shards = [a.reshape(devices, -1, *a.shape[1:]) for a in (mean, logvar, keys)]
    value, gradient = jax.jit(jax.vmap(of_device, axis_name=parallel.AXIS))(*shards)
    return float(value[0]), np.asarray(gradient).reshape(mean.shape)


def test_unevenness_is_minus_the_entropy_of_the_mean_responsibilities_on_any_number_of_devices():
    mean, logvar = np.random.default_rng(5).normal(size=(2, BATCH, Z)).astype(np.float32)
    value, gradient = unevenness(mean, logvar)
    net = passes_of(static(SETTING), state_of(SETTING))
    z = mean[:, None] + np.exp(logvar / 2)[:, None] * net._kl_noise(["real"])
    r = np.asarray(mixture().responsibilities(z), np.float64).mean((0, 1))
    assert value == pytest.approx((r * np.log(r)).sum() / np.log(3), rel=1e-5)
    on_two = unevenness(mean, logvar, devices=2)
    assert on_two[0] == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(on_two[1], gradient, rtol=1e-4, atol=1e-7)
    h = 1e-2
    for place in ((0, 0), (2, 1)):
        e = np.zeros_like(mean)
        e[place] = h
        difference = (unevenness(mean + e, logvar)[0] - unevenness(mean - e, logvar)[0]) / (2 * h)
        assert gradient[place] == pytest.approx(difference, rel=0.02, abs=1e-5)


def test_the_regulariser_moves_the_encoder_alone():
    with_it = priors.Setting(components=3, kl_samples=4, rate=1.0, responsibility=5.0, std=1.0)
    (a, logged), (b, without) = stepped(static(with_it)), stepped(static(SETTING))
    assert logged["loss_encoder"][0] < without["loss_encoder"][0], "unevenness is negative"
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), a.encoder.params, b.encoder.params)
    assert max(jax.tree.leaves(moved)) > 1e-4


# --- a run ------------------------------------------------------------------------------------------------------------


def settings(**given):
    config = configs.read_recipe("configs/gaussians8.py")
    tiny = {
        "model.prior": "mixture",
        "model.channels": (8,),
        "model.components": 4,
        "objective.num_vae": 10,
        "objective.kl_samples": 8,
        "train.steps": 20,
        "train.batch_size": 16,
        "train.substeps": 5,
        "train.ema": 0.9,
        "log.every": 5,
        "log.figures_every": 0,
        "log.report": False,
        "checkpoint.every": 5,
        "checkpoint.best": "",
        "eval.evaluators": ("latents",),
        "eval.num_samples": 32,
    }
    config.update_from_flattened_dict(tiny | given)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("prior") / "run"
    main.run("train", settings(), workdir)
    return workdir


def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(trained, tmp_path):
    main.run("train", settings(), stopped_after(15, trained, tmp_path / "run"))
    for ema in (True, False):
        resumed, whole = (sintrovae_jax.load(workdir, ema=ema) for workdir in (tmp_path / "run", trained))
        jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)
    assert metrics(tmp_path / "run")[-1]["kl_real"] == metrics(trained)[-1]["kl_real"]


def test_a_loaded_model_uses_its_prior(trained):
    model, other = sintrovae_jax.load(trained), sintrovae_jax.load(trained, ema=False)
    assert np.abs(model.mixture.mean - other.mixture.mean).max() > 0, "the prior is averaged, too"
    results = json.loads((trained / "results.json").read_text())
    assert 1 <= results["components_used"] <= 4 + 1e-5
    z = np.concatenate([model.prior(0, 400, component=k) for k in range(4)])
    for k, part in enumerate(np.split(z, 4)):
        np.testing.assert_allclose(part.mean(0), model.mixture.mean[k], atol=0.3)
    np.testing.assert_allclose(model.prior(0, 2, component=1, temperature=0.0), model.mixture.mean[[1, 1]])
    fixed = sintrovae_jax.load("pretrained:digits")
    np.testing.assert_allclose(fixed.prior(0, 2, temperature=0.5), fixed.prior(0, 2) / 2, rtol=1e-6)
    assert len(model.sample(0, 3)) == 3


def test_the_likelihood_is_under_the_learnt_prior(trained):
    model = sintrovae_jax.load(trained)
    x, count, std = np.asarray(model.sample(0, 2)), 2_000, 0.5
    estimate = model.importance_weighted(x, samples=count, std=std)
    posterior = model.encode(x)
    for i in range(2):
        mean, deviation = np.asarray(posterior.mean[i]), np.exp(np.asarray(posterior.logvar[i]) / 2)
        z = (mean + deviation * np.random.default_rng(i).normal(size=(count, Z))).astype(np.float32)
        log_p = stats.norm.logpdf(x[i], np.asarray(model.decode(z)), std).sum(1)
        m = model.mixture
        parts = zip(weights(m), m.mean, np.exp(m.logvar / 2), strict=True)
        prior = special.logsumexp([np.log(w) + stats.norm.logpdf(z, a, b).sum(1) for w, a, b in parts], axis=0)
        weight = log_p + prior - stats.norm.logpdf(z, mean, deviation).sum(1)
        assert float(estimate.elbo[i]) == pytest.approx(weight.mean(), abs=7 * weight.std() / np.sqrt(count))
        ratio = np.exp(weight - weight.max())
        expected = weight.max() + np.log(ratio.mean())
        relative = ratio.std() / ratio.mean() / np.sqrt(count)
        assert float(estimate.log_likelihood[i]) == pytest.approx(expected, abs=7 * relative)


def test_the_figure_of_components(trained):
    assert (trained / "figures" / "components.png").stat().st_size > 5_000


def test_components_that_there_are_not(trained):
    with pytest.raises(UserError, match="4 components: there is no 4"):
        sintrovae_jax.load(trained).prior(0, 1, component=4)
    with pytest.raises(UserError, match="no components: there is no 0"):
        sintrovae_jax.load("pretrained:digits").prior(0, 1, component=0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model.prior": "flow"}, "model.prior='flow' is none of normal, mixture"),
        ({"objective.kl_weights": (1.0, 1.0)}, "objective.kl_weights are for model.prior=normal"),
        ({"model.prior": "normal", "objective.responsibility": 1.0}, "are for model.prior=mixture"),
        ({"model.components": 1, "objective.responsibility": 1.0}, "needs model.components of 2 or more"),
        ({"objective.name": "vae", "objective.responsibility": 1.0}, "objective.name=vae has none"),
    ],
)
def test_values_that_do_not_fit(given, says):
    with pytest.raises(UserError, match=says):
        configs.validate(settings(**given))
