"""The controller of β_neg: which way and how far it moves, what a step sees of it, and that a run resumes with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import metrics
from test_train_step import on_one_device

import sintrovae_jax
from sintrovae_jax import checkpoint, controller, inference, main, parallel
from sintrovae_jax import config as configs
from sintrovae_jax.errors import UserError

SETTING = controller.Setting(target=0.1, rate=0.01, bounds=(1.0, 1000.0))


def after(kls, setting=SETTING, start=50.0):
    """(β_neg, smoothed gap) after each step with these (kl_real, kl_recon, kl_fake)."""

    def step(state, kl):
        state = controller.moved(state, *kl, setting)
        return state, (state.value, state.gap)

    def run(state, kls):
        return jax.lax.scan(step, state, kls)[1]

    return np.stack(on_one_device(run, controller.create(start, setting), np.asarray(kls, np.float32)), 1)


def test_it_is_the_integral_of_a_bounded_error():
    """Against the same in numpy."""
    kls = np.random.default_rng(0).uniform(5, 15, size=(30, 3))
    beta, gap, expected = np.log(50.0), 0.1, []
    for real, recon, fake in kls:
        gap += 0.02 * (np.clip((min(recon, fake) - real) / real, -1, 1) - gap)
        beta += 0.01 * np.clip((gap - 0.1) / 0.1, -1, 1)
        expected.append((np.exp(beta), gap))
    np.testing.assert_allclose(after(kls), expected, rtol=1e-5, atol=1e-6)


def test_it_weakens_the_repulsion_while_samples_are_too_far_and_strengthens_it_while_they_are_too_near():
    far, near, there = (after([(10, 10 * ratio, 20)] * 200)[-1][0] for ratio in (1.5, 0.9, 1.1))
    assert far > 60
    assert near < 40
    assert there == pytest.approx(50, rel=0.01)


def test_it_stays_within_its_bounds():
    narrow = controller.Setting(target=0.1, rate=0.1, bounds=(40.0, 60.0))
    assert after([(10, 30, 30)] * 60, narrow)[-1][0] == pytest.approx(60)
    assert after([(10, 5, 5)] * 60, narrow)[-1][0] == pytest.approx(40)


def test_it_is_the_same_on_all_devices():
    kls = np.float32([[10, 14, 12], [12, 13, 16]])
    state = controller.create(50.0, SETTING)
    step = jax.vmap(lambda kl: controller.moved(state, *kl, SETTING), axis_name=parallel.AXIS)
    both = jax.jit(step)(jnp.asarray(kls))
    assert float(both.log[0]) == float(both.log[1])
    whole = after([kls.mean(0)])[0]
    assert float(both.value[0]) == pytest.approx(whole[0], rel=1e-6)


def settings(**given):
    config = configs.read_recipe("configs/gaussians8.py")
    tiny = {
        "model.channels": (8,),
        "objective.beta_neg_target": 0.0,
        "objective.beta_neg_rate": 0.02,
        "objective.beta_neg": 5.0,
        "objective.num_vae": 5,
        "train.steps": 30,
        "train.batch_size": 16,
        "train.substeps": 5,
        "log.every": 5,
        "log.figures_every": 0,
        "checkpoint.every": 10,
        "checkpoint.best": "",
        "eval.evaluators": (),
    }
    config.update_from_flattened_dict(tiny | given)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("controller") / "run"
    main.run("train", settings(), workdir)
    return workdir


def test_a_run_logs_it_and_moves_it(trained):
    rows = metrics(trained)
    assert rows[0]["beta_neg"] == "", "the VAE phase has none"
    values = [float(row["beta_neg"]) for row in rows[1:]]
    assert values[0] == pytest.approx(5, rel=0.1)
    assert abs(np.log(values[-1] / values[0])) > 0.01
    assert all(float(row["kl_gap_smoothed"]) < 1 for row in rows[1:])


def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(trained, tmp_path):
    for steps in (15, 30):
        main.run("train", settings(**{"train.steps": steps}), tmp_path / "run")
    resumed, whole = (sintrovae_jax.load(workdir) for workdir in (tmp_path / "run", trained))
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)
    config = settings()
    _, abstract = inference.described(config, trained)
    states = []
    for workdir in (tmp_path / "run", trained):
        checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
        states.append(checkpoints.restore(abstract))
        checkpoints.close()
    assert states[0].beta_neg == states[1].beta_neg
    assert states[0].beta_neg.log != np.float32(np.log(5.0))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"objective.name": "vae"}, "objective.name=vae has no beta_neg"),
        ({"objective.beta_neg": 0.5}, "is not within beta_neg_bounds"),
        ({"objective.beta_neg_bounds": (3.0, 2.0)}, "the smaller one first"),
        ({"objective.beta_neg_target": 2.0}, "must be above -1 and below 1"),
    ],
)
def test_values_that_do_not_fit(given, says):
    with pytest.raises(UserError, match=says):
        configs.validate(settings(**given))
