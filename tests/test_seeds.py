"""A seed means the same whatever jax and flax are set to, and one that does not fit 32 bits is refused."""

from collections.abc import Iterator
from pathlib import Path

import flax
import jax
import numpy as np
import pytest
from conftest import metrics

import sintrovae_jax
from sintrovae_jax import config as configs
from sintrovae_jax import dispatch, inference, main, seeds, train_state
from sintrovae_jax.data import sources
from sintrovae_jax.errors import UserError
from sintrovae_jax.parallel import Shard

# What JAX_ENABLE_X64=1 and the like set.
SETTINGS = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 5,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
}


@pytest.fixture
def unusual() -> Iterator[None]:
    """All of the settings at once, and flax's."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    separated = flax.config.flax_fix_rng_separator
    for name, value in SETTINGS.items():
        jax.config.update(name, value)
    flax.config.update("flax_fix_rng_separator", True)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    flax.config.update("flax_fix_rng_separator", separated)


def of_points() -> inference.Model:
    """A small model that is not trained."""
    settings = configs.read_recipe("gaussians8")
    networks, _, create = dispatch.from_config(settings)
    return inference.from_state(settings, networks, train_state.initial(create))


def used(points: inference.Model) -> list[np.ndarray]:
    """What two models, one of which is loaded, draw and compute from seeds."""
    style = sintrovae_jax.load("pretrained:digits_style")
    x = np.random.default_rng(0).random((4, 2), np.float32)
    drawn = (points.sample(0, 4), style.sample(seeds.LARGEST, 2, 0.7), points.log_likelihood(x, 3, key=7))
    return [np.asarray(a) for a in drawn]


def trained(workdir: Path) -> tuple[dict, list]:
    """The parameters and the rows of metrics after two steps."""
    config = configs.read_recipe("digits")
    small = {"data.image_size": 8, "model.family": "mlp", "model.channels": (4,), "objective.name": "vae", "seed": 3}
    small |= {"train.steps": 2, "train.batch_size": 16, "train.substeps": 1, "eval.evaluators": (), "log.every": 1}
    small |= {"checkpoint.best": "", "eval.batch_norm": "running", "log.report": False, "log.figures": False}
    config.update_from_flattened_dict(small)
    main.run("train", config, workdir)
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in metrics(workdir)]
    return sintrovae_jax.load(workdir).variables, rows


def test_settings_of_jax_and_flax_change_no_sample(request):
    points = of_points()
    usual = used(points)
    request.getfixturevalue("unusual")
    for wanted, got in zip(usual, used(points), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted)
    assert jax.numpy.zeros(1).dtype == np.float64, "the user's settings stay"


def test_settings_of_jax_and_flax_change_no_training(request, tmp_path):
    variables, rows = trained(tmp_path / "usual")
    request.getfixturevalue("unusual")
    again, rows_again = trained(tmp_path / "unusual")
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert rows_again == rows
    assert len(rows) == 2


def test_a_model_can_be_part_of_a_program_of_64_bits():
    model = sintrovae_jax.load("pretrained:digits")
    z = np.random.default_rng(0).normal(size=(2, model.config.model.z_dim))
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda z: model.decode(z).sum()))(z)
    assert gradient.dtype == np.float64
    assert np.isfinite(gradient).all()


def test_the_key_of_a_seed_is_jaxs_own():
    for seed in (0, 3, np.int64(7), 2**31, seeds.LARGEST):
        wanted = jax.random.key_data(jax.random.key(int(seed), impl="threefry2x32"))
        np.testing.assert_array_equal(jax.random.key_data(seeds.key(seed)), wanted)


def test_a_key_of_any_kind_can_be_given_for_a_seed():
    model = sintrovae_jax.load("pretrained:digits")
    for key in (jax.random.key(3), jax.random.PRNGKey(3), np.asarray(jax.random.PRNGKey(3))):
        np.testing.assert_array_equal(model.prior(key, 2), model.prior(3, 2))
    other = model.prior(jax.random.key(3, impl="rbg"), 2)
    assert not np.array_equal(other, model.prior(3, 2))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 1.5, "3", True, None])
def test_what_is_no_seed_is_refused_in_one_line(seed, tmp_path):
    model = sintrovae_jax.load("pretrained:digits")
    for use in (lambda: model.sample(seed, 1), lambda: model.log_likelihood(np.zeros((1, 16, 16, 1)), 1, key=seed)):
        with pytest.raises(UserError, match="a seed is a whole number from 0 to 4294967295, not"):
            use()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_run_with_such_a_seed_is_refused(seed, tmp_path):
    config = configs.read_recipe("digits")
    config.seed = seed
    with pytest.raises(UserError, match=f"seed={seed} must be a whole number from 0 to 4294967295"):
        main.run("train", config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_seed_orders_the_data_in_its_own_way():
    steps, shard = np.arange(3), Shard(8, 0, 1, 8)
    orders = [sources.chosen(seed, steps, 100, shard).numpy() for seed in (0, 5, 2**31, 2**31 + 5, seeds.LARGEST)]
    assert len({order.tobytes() for order in orders}) == len(orders)
