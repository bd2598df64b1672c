"""Growing in the loop: the schedule, the images of each level, and that a run in parts is the run."""

import dataclasses
import shutil
import signal

import jax
import numpy as np
import pytest
from conftest import metrics, run, start, stopped_after
from PIL import Image
from test_train import compilations, final_state, wait_for

from sintrovae_jax import config as configs
from sintrovae_jax import inference, modes, schedule
from sintrovae_jax.data import pipeline, sources
from sintrovae_jax.data.images import Format
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import scoring
from sintrovae_jax.models import Stage
from sintrovae_jax.parallel import Shard

TINY = [  # 4×4 for 20 steps; 8×8 from then on, blended in up to step 40; all of it the VAE phase, which compiles sooner
    "--config.data.image_size=8",
    "--config.model.channels=(6,6)",
    "--config.model.z_dim=4",
    "--config.growth.steps=(20,40)",
    "--config.growth.batch_sizes=(8,4)",
    "--config.train.batch_size=4",
    "--config.train.steps=60",
    "--config.objective.num_vae=60",
    "--config.optimizer.learning_rate=1e-5",
    "--config.train.substeps=5",
    "--config.log.every=5",
    "--config.log.figures_every=0",
    "--config.log.report=False",
    "--config.checkpoint.every=5",
    "--config.checkpoint.keep=20",
    "--config.eval.evaluators=()",  # test_evaluate.py scores one that grows
    "--config.eval.num_samples=16",
]


def growing(**changes):
    settings = configs.read_recipe("configs/digits_style.py")
    settings.growth.steps, settings.growth.batch_sizes = (20, 40, 60), (16, 8, 4)
    settings.train.steps = 200
    settings.update_from_flattened_dict(changes)
    return settings


def test_levels_follow_each_other_and_the_last_goes_on():
    got = [
        (level.number, level.start, level.stop, level.batch_size, level.size) for level in schedule.levels(growing())
    ]
    assert got == [(0, 0, 20, 16, 4), (1, 20, 60, 8, 8), (2, 60, 200, 4, 16)]
    short = schedule.levels(growing(**{"train.steps": 40}))
    assert [(level.start, level.stop) for level in short] == [(0, 20), (20, 40)]
    plain = configs.read_recipe("configs/digits.py")
    assert [level.number for level in schedule.levels(plain)] == [None]
    at_once = schedule.levels(growing(**{"growth.steps": ()}))
    assert [(level.number, level.start, level.stop, level.grown) for level in at_once] == [(2, 0, 200, 0)]


def test_a_level_blends_in_over_its_first_half():
    steps = np.array([0, 19, 20, 30, 40, 59, 60, 75, 90, 199])
    wanted = [1, 1, 0, 0.5, 1, 1, 0, 0.5, 1, 1]
    for settings in (growing(), growing(**{"train.steps": 120})):  # where the run ends does not matter
        np.testing.assert_allclose(schedule.hypers_at(settings, steps).blend[:-1], wanted[:-1], atol=1e-7)
    assert schedule.stage_at(growing(), 31) == Stage(1, 0.5)  # the 31st step was step 30
    assert schedule.stage_at(growing(), 20) == Stage(0, 1.0)
    assert schedule.stage_at(growing(), 0) == Stage(0, 1.0)
    assert schedule.stage_at(configs.read_recipe("configs/digits.py"), 7) is None


def test_every_level_has_its_hyper_parameters():
    settings = growing(**{"growth.learning_rates": (0.1, 0.2, 0.3), "growth.beta_neg": (8.0, 4.0, 2.0)})
    at = schedule.hypers_at(settings, np.array([0, 19, 20, 59, 60, 199]))
    np.testing.assert_allclose(at.learning_rate, [0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    np.testing.assert_allclose(at.beta_neg, [8, 8, 4, 4, 2, 2])
    np.testing.assert_allclose(at.ema, 0.5 ** (np.array([16, 16, 8, 8, 4, 4]) / 3_000), rtol=1e-6)
    settings.optimizer.milestones = (30,)
    rates = schedule.hypers_at(settings, np.array([0, 19, 20, 59, 60, 199])).learning_rate
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.2, 0.02, 0.03, 0.03], rtol=1e-6)


def average(x, factor):
    """2-D block means by slicing and adding."""
    parts = [x[:, i::factor, j::factor].astype(float) for i in range(factor) for j in range(factor)]
    return sum(parts) / factor**2


def test_images_of_a_level_are_averages_whether_cached_or_not(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (13, 8, 8, 3)).astype(np.uint8)
    whole = sources.Arrays(x[:10], x[10:])
    shard = Shard(4, 0, 1, 4)
    for size in (4, 2, 1):
        wanted = average(x, 8 // size)
        assert np.abs(np.asarray(whole.at(size)._train, float) - wanted[:10]).max() <= 0.5
        np.testing.assert_allclose(255 * whole.at(size).test(3, 0), wanted[10:], atol=0.501)
        streamed = sources.Shrunk(whole, size)
        for a, b in zip(
            streamed.stream(0, 0, 5, shard).as_numpy_iterator(),
            whole.at(size).stream(0, 0, 5, shard).as_numpy_iterator(),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    assert whole.at(8) is whole
    assert whole.at(4) is whole.at(4)


def test_small_sizes_of_a_set_on_disk_are_read_once():
    reads = []

    def read(size):
        reads.append(size)
        x = np.zeros((6, size, size, 1), np.uint8)
        return sources.Arrays(x[:5], x[5:])

    source = sources.Arrays(np.zeros((5, 16, 16, 1), np.uint8), np.zeros((1, 16, 16, 1), np.uint8))
    at = sources.Pyramid(source, Format(16, 1), 6, 6 * 4 * 4, read).at
    assert at(16) is source
    assert [at(size).test(1, 0).shape[1] for size in (8, 4, 2)] == [8, 4, 2]
    assert reads == [], "to look at a few pictures takes no reading of all"
    for size in (8, 4, 2, 4):
        batch = next(at(size).stream(0, 0, 1, Shard(4, 0, 1, 4)).as_numpy_iterator())
        assert batch.shape == (4, size, size, 1)
    assert reads == [4]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(workdir, log) of a run through two levels."""
    workdir = tmp_path_factory.mktemp("grown") / "whole"
    out = run("digits_style", workdir, *TINY, log_compiles=True)
    return workdir, out


@pytest.mark.soak
def test_the_step_compiles_once_a_level(whole):
    assert compilations(whole[1]) == 2, "blending and saves compile nothing"


@pytest.mark.soak
@pytest.mark.parametrize("last", [20, 30], ids=["between two levels", "in the blend"])
def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(whole, tmp_path, last):
    """Processes that are killed are in `test_train`; what they leave is a checkpoint of this run."""
    workdir = stopped_after(last, whole[0], tmp_path / "run")
    assert f"resuming from step {last}" in run("digits_style", workdir, *TINY)
    jax.tree.map(np.testing.assert_array_equal, final_state(whole[0]), final_state(workdir))
    assert terms(workdir) == terms(whole[0])


def terms(workdir):
    """The rows of metrics.csv without times."""
    return [{name: row[name] for name in row.keys() - {"seconds", "examples_per_second"}} for row in metrics(workdir)]


@pytest.mark.soak
def test_the_devices_do_not_change_the_run(whole, tmp_path):
    # Through the first level and into the second. What is mixed on prior samples is in `test_style`.
    two = start("digits_style", tmp_path, *TINY, devices=2)
    wait_for([two], tmp_path, 26)
    two.send_signal(signal.SIGKILL)
    two.communicate()
    for one, two in zip(terms(whole[0])[:5], terms(tmp_path)[:5], strict=True):
        for name in one:
            if one[name]:
                assert float(two[name]) == pytest.approx(float(one[name]), rel=2e-3), (one["step"], name)


def test_optimisers_start_anew_at_a_level(whole):
    assert int(final_state(whole[0]).encoder.opt_state.count) == 40  # the last level began at step 20 of 60


def test_a_model_is_of_the_level_it_has_reached(whole):
    model = inference.load(whole[0])
    assert model.shape == (8, 8, 1)
    assert model.sample(0, 3).shape == (3, 8, 8, 1)
    z = model.prior(0, 3)
    np.testing.assert_allclose(model.synthesize(model.styles(z)), model.decode(z), atol=1e-6)
    assert np.abs(model.synthesize(model.styles(z, truncation=0.5)) - model.decode(z)).max() > 1e-3
    np.testing.assert_array_equal(model.decode(z, noise=False), model.decode(z, noise=False))
    blending = inference.load(whole[0], 30).stage
    assert blending == Stage(1, pytest.approx(0.5 - 0.5 * np.cos(np.pi * 9 / 20)))  # its last step was step 29
    earlier = inference.load(whole[0], 15)
    assert earlier.stage == Stage(0, 1.0)
    assert earlier.sample(0, 2).shape == (2, 4, 4, 1)


def test_its_pictures_are_drawn_and_drawn_again(whole, tmp_path):
    names = {"samples", "reconstructions", "interpolations", "mixing", "resolutions"}
    figures = whole[0] / "figures"
    assert {path.stem for path in figures.iterdir()} == names
    table = np.asarray(Image.open(figures / "mixing.png").convert("L"))
    assert table.shape[0] == table.shape[1] > 9 * 8  # 8 rows and columns, and those whose styles they have
    shutil.copytree(whole[0], tmp_path / "run")
    for path in (tmp_path / "run" / "figures").iterdir():
        path.unlink()
    settings = configs.read(whole[0])
    settings.eval.truncation = 0.5
    for mode in ("sample", "reconstruct", "interpolate"):
        modes.run(mode, settings, tmp_path / "run", modes.Ends(path="style"))
    assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} == names
    for name in ("mixing", "resolutions", "reconstructions"):
        assert (tmp_path / "run" / "figures" / f"{name}.png").read_bytes() == (figures / f"{name}.png").read_bytes()
    drawn, model = np.load(tmp_path / "run" / "samples.npz"), inference.load(whole[0])
    np.testing.assert_allclose(drawn["x"], model.synthesize(model.styles(drawn["z"], 0.5)), atol=1e-6)


def test_between_two_images_of_any_size_for_a_model_that_is_still_growing(whole, tmp_path):
    Image.fromarray(np.full((40, 40), 128, np.uint8)).save(tmp_path / "a.png")
    model = inference.load(whole[0], 15)
    source = scoring.source_of(model, pipeline.build(model.config.data))
    path = modes._interpolate(model, source, tmp_path, modes.Ends(str(tmp_path / "a.png"), "3"))
    assert Image.open(path).size[0] > 10 * 4


def test_all_images_of_a_path_have_the_noise_of_its_row(whole):
    model = inference.load(whole[0])

    def louder(path, leaf):
        return leaf + 1 if "noise" in jax.tree_util.keystr(path) else leaf

    decoder = jax.tree_util.tree_map_with_path(louder, model.variables["decoder"])
    model = dataclasses.replace(model, variables=model.variables | {"decoder": decoder})
    x = np.random.default_rng(0).random((3, *model.shape), np.float32)
    for path in ("linear", "spherical", "style"):
        between = model.interpolate(x, x[::-1], 4, path)
        np.testing.assert_allclose(between[:, 0], model.reconstruct(x), atol=1e-4)
    still = model.interpolate(x, x, 4)
    np.testing.assert_allclose(still[:, 1], still[:, 0], atol=1e-4)
    loud = model.decode(np.zeros((3, 4)))
    assert np.abs(loud[0] - loud[1]).max() > 1e-2


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: model.styles(np.zeros((2, 5))), r"latents of shape \[N, 4\]"),
        (lambda model: model.styles(np.zeros((2, 4)), 1.5), "from 0 to 1, not 1.5"),
        (lambda model: model.synthesize(np.zeros((2, 2, 4))), r"styles of shape \[N, 4, 4\]"),
        (lambda model: model.synthesize(np.zeros((2, 6, 4))), r"styles of shape \[N, 4, 4\]"),
    ],
)
def test_what_is_no_style_is_refused(whole, call, said):
    with pytest.raises(UserError, match=said):
        call(inference.load(whole[0]))


def test_in_a_blend_a_model_is_scored_on_images_as_blended_as_in_training(whole):
    settings = configs.read(whole[0])
    source, model = pipeline.build(settings.data), inference.load(whole[0], 30)
    assert 0 < model.stage.blend < 1
    x = source.test(5, 0)
    coarse = np.kron(average(x, 2), np.ones((1, 2, 2, 1)))
    wanted = (1 - model.stage.blend) * coarse + model.stage.blend * x
    np.testing.assert_allclose(scoring.source_of(model, source).test(5, 0), wanted, atol=1e-5)
