"""Loading from the workdir alone, in another process, without TensorFlow."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import FULL, ROOT, TINY, environment, metrics, run
from PIL import Image

import sintrovae_jax
from sintrovae_jax import checkpoint, config, dispatch, inference, modes, parallel, schedule, train_state, train_step
from sintrovae_jax.data import pipeline
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import evaluation
from sintrovae_jax.parallel import Shard
from sintrovae_jax.plots import figures
from sintrovae_jax.tools import bench

WITHOUT_TENSORFLOW = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "clu", "tensorboard", "sklearn", "matplotlib"):
    sys.modules[name] = None  # importing it is an error
import numpy as np
import sintrovae_jax
model = sintrovae_jax.load(sys.argv[1])
x = np.load(sys.argv[2])
between = model.interpolate(x[:2], x[2:4], 5)
np.savez(sys.argv[3], samples=model.sample(7, 50), recon=model.reconstruct(x), between=between)
"""


def test_another_process_without_tensorflow_gets_the_same_model(trained, tmp_path):
    x = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    script = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(trained), str(tmp_path / "x.npy"), str(tmp_path / "y.npz")]
    subprocess.run(script, check=True, env=environment(), cwd=tmp_path)
    got = np.load(tmp_path / "y.npz")
    model = sintrovae_jax.load(trained)
    np.testing.assert_array_equal(got["samples"], model.sample(7, 50))
    np.testing.assert_array_equal(got["recon"], model.reconstruct(x))
    np.testing.assert_array_equal(got["between"], model.interpolate(x[:2], x[2:4], 5))


@pytest.mark.soak
def test_a_trained_state_saved_and_loaded_elsewhere_is_the_same_model(five_steps, tmp_path):
    """Against the arrays that training left in memory, not against another loaded copy."""
    settings, (trained_state, networks) = small_digits(), five_steps
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(trained_state)
    checkpoints.close()
    config.write(settings, tmp_path)
    x = pipeline.build(settings.data).test(10, 0)
    np.save(tmp_path / "x.npy", x)
    script = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path), str(tmp_path / "x.npy"), str(tmp_path / "y.npz")]
    subprocess.run(script, check=True, env=environment(), cwd=tmp_path)
    got, model = np.load(tmp_path / "y.npz"), inference.from_state(settings, networks, trained_state)
    np.testing.assert_array_equal(got["samples"], model.sample(7, 50))
    np.testing.assert_array_equal(got["recon"], model.reconstruct(x))


def small_digits():
    settings = config.read_recipe("configs/digits.py")
    settings.data.image_size, settings.model.channels = 8, (8,)
    return settings


@pytest.fixture(scope="module")
def five_steps():
    """A host state after five steps of the VAE phase on `small_digits`, which compiles sooner, and its networks."""
    settings = small_digits()
    networks, static, create = dispatch.from_config(settings)
    start = train_state.initial(create)
    batch = next(
        pipeline.batches(
            pipeline.build(settings.data), settings.data, seed=0, start=0, stop=5, substeps=5, shard=Shard(16, 0, 1, 16)
        )
    )
    static = dataclasses.replace(static, vae=True)
    hypers = schedule.hypers_at(settings, np.arange(5))
    first = jax.tree.map(lambda x: x[None], (start, hypers))
    step = functools.partial(train_step.train_step, networks, static)
    after, terms = jax.pmap(step, parallel.AXIS, in_axes=(0, 0, 0, None))(first[0], batch, first[1], jax.random.key(0))
    assert float(terms["kl_real"][0, 1]) == 5
    return parallel.unreplicate(after), networks


@pytest.mark.soak
def test_pictures_of_images_show_what_they_say(five_steps, tmp_path):
    settings, (trained_state, networks) = small_digits(), five_steps
    model, source = inference.from_state(settings, networks, trained_state), pipeline.build(settings.data)
    figures.write_all(model, source, tmp_path)

    def cells(name):  # ten rows of ten images of 8 pixels, a line apart, six times as large
        pixels = np.asarray(Image.open(tmp_path / "figures" / f"{name}.png"))
        assert pixels.shape == (10 * 54 - 6, 10 * 54 - 6)
        padded = np.pad(pixels, (0, 6)).reshape(10, 54, 10, 54)
        return padded[:, :48:6, :, :48:6].swapaxes(1, 2)

    def grey(x):
        return (np.asarray(x)[..., 0].clip(0, 1) * 255 + 0.5).astype(np.uint8)

    x = source.test(50, settings.seed)
    recon = cells("reconstructions")
    np.testing.assert_array_equal(recon[0::2].reshape(50, 8, 8), grey(x))
    np.testing.assert_array_equal(recon[1::2].reshape(50, 8, 8), grey(model.reconstruct(x)))
    np.testing.assert_array_equal(cells("samples").reshape(100, 8, 8), grey(model.sample(settings.seed, 100)))
    between = cells("interpolations")
    assert np.abs(between[:, 0].astype(int) - grey(model.reconstruct(x[:20:2]))).max() <= 1
    assert np.abs(between[:, 9].astype(int) - grey(model.reconstruct(x[1:20:2]))).max() <= 1


def test_the_loaded_model_is_the_one_that_training_drew(trained, tmp_path):
    """The pictures that the training process left are drawn again from the checkpoint, to the byte."""
    model = sintrovae_jax.load(trained)
    figures.write_all(model, pipeline.build(model.config.data), tmp_path)
    for name in ("samples", "reconstructions", "interpolations"):
        drawn = (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert drawn == (trained / "figures" / f"{name}.png").read_bytes()
        assert drawn != (trained / "figures" / f"{name}_0000030.png").read_bytes()


def test_which_checkpoint(trained, tmp_path):
    assert sintrovae_jax.load(trained).step == 60
    assert sintrovae_jax.load(trained / "checkpoints").step == 60
    assert sintrovae_jax.load(trained, step=40).step == 40
    assert sintrovae_jax.load(trained / "checkpoints" / "40").step == 40
    with pytest.raises(UserError, match=r"no checkpoint of step 41 .* there are 40, 60"):
        sintrovae_jax.load(trained, step=41)
    with pytest.raises(UserError, match="is no workdir"):
        sintrovae_jax.load(tmp_path)
    shutil.copy(trained / "config.json", tmp_path)
    with pytest.raises(UserError, match="no checkpoint in"):
        sintrovae_jax.load(tmp_path)
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "60" / "networks" / "d")
    with pytest.raises(UserError, match=r"checkpoint 60 .* cannot be read"):
        sintrovae_jax.load(tmp_path)
    assert sintrovae_jax.load(tmp_path, step=40).step == 40


def test_shapes_and_interpolation_ends(trained):
    model = sintrovae_jax.load(trained)
    x = np.random.default_rng(1).normal(size=(3, 2))
    posterior = model.encode(x)
    assert posterior.mean.shape == posterior.logvar.shape == (3, 2)
    between = model.interpolate(x[:1], x[1:2], 7)
    assert between.shape == (1, 7, 2)
    np.testing.assert_allclose(between[0, 0], model.reconstruct(x[:1])[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(between[0, -1], model.reconstruct(x[1:2])[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.sample(3, 4), model.sample(jax.random.key(3), 4))
    assert (np.asarray(model.sample(3, 4)) != np.asarray(model.sample(4, 4))).any()
    with pytest.raises(UserError, match=r"shape \[N, 2\], not \(3, 3\)"):
        model.encode(np.zeros((3, 3)))
    with pytest.raises(UserError, match=r"latents of shape \[N, 2\]"):
        model.decode(np.zeros((3, 5)))


@pytest.mark.soak
def test_the_other_modes(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for path in (workdir / "figures").iterdir():
        path.unlink()
    args = [*TINY, *FULL, "--config.eval.num_samples=70"]
    run("gaussians8", workdir, *args, "--mode", "sample")
    saved = np.load(workdir / "samples.npz")
    model = sintrovae_jax.load(workdir)
    assert saved["x"].shape == saved["z"].shape == (70, 2)
    np.testing.assert_array_equal(saved["x"], model.decode(saved["z"]))
    np.testing.assert_array_equal(saved["x"], model.sample(model.config.seed, 70))

    run("gaussians8", workdir, *args, "--mode", "reconstruct")
    run("gaussians8", workdir, *args, "--mode", "interpolate")
    names = {path.name for path in (workdir / "figures").iterdir()}
    assert names == {"samples.png", "reconstructions.png", "interpolations.png"}

    before = json.loads((workdir / "results.json").read_text())
    run("gaussians8", workdir, *args, "--mode", "eval", "--config.eval.evaluators=('density','latents')")
    after = json.loads((workdir / "results.json").read_text())
    assert after["seconds"] == before["seconds"]
    assert after["kl_gap"] == pytest.approx(min(after["kl_fake"], after["kl_recon"]) - after["kl_real"])
    assert after["gnelbo"] == before["gnelbo"]
    assert len(metrics(workdir)) == 12
    assert json.loads((workdir / "config.json").read_text())["eval"]["num_samples"] == 500, "config.json is training's"


@pytest.mark.soak
def test_interpolation_between_a_file_and_a_test_image(five_steps, tmp_path):
    settings, (trained_state, _) = small_digits(), five_steps
    settings.eval.standing_batches = 2
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(trained_state)
    checkpoints.close()
    config.write(settings, tmp_path)
    source = pipeline.build(settings.data)
    x = source.test(4, 0)
    Image.fromarray((x[2, ..., 0] * 255).round().astype(np.uint8)).save(tmp_path / "two.png")

    ends = modes.Ends(str(tmp_path / "two.png"), "3", "spherical")
    modes.run("interpolate", settings, tmp_path, ends)
    pixels = np.asarray(Image.open(tmp_path / "figures" / "interpolation.png"))
    row = np.pad(pixels, ((0, 6), (0, 6))).reshape(54, 10, 54)[:48:6, :, :48:6].swapaxes(0, 1)
    model = evaluation.prepared(inference.load(tmp_path), source)
    wanted = np.asarray(model.interpolate(x[2:3], x[3:4], 10, "spherical"))[0, ..., 0].clip(0, 1) * 255
    assert np.abs(row - wanted).max() <= 1

    for end, says in (("297", "there are 297"), (str(tmp_path / "none.png"), "no image that can be read")):
        with pytest.raises(UserError, match=says):
            modes.run("interpolate", settings, tmp_path, modes.Ends("0", end))


def test_the_bench_times_the_pipeline_alone(tmp_path):
    args = ["--data", "--config.train.batch_size=8", "--config.train.substeps=50", "--dispatches=5"]
    out = run("digits", None, *args, program=bench.main)
    figures = json.loads(out.strip().splitlines()[-1])
    assert figures["examples"] == 5 * 50 * 8
    assert figures["examples_per_second"] > 0


@pytest.mark.soak
def test_the_bench_prints_one_json_line_without_tensorflow():
    code = "import sys, runpy; sys.modules['tensorflow'] = None; sys.argv[0] = 'bench'; "
    code += "runpy.run_module('sintrovae_jax.tools.bench', run_name='__main__')"
    args = ["--config", "configs/gaussians8.py", "--config.train.batch_size=8", "--config.train.substeps=2"]
    args += ["--config.model.channels=(8,)", "--config.train.steps=4", "--dispatches=2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=environment(2), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.strip().splitlines()
    figures = json.loads(line)
    assert figures["devices"] == 2
    assert figures["examples_per_second"] == pytest.approx(8 * figures["steps_per_second"])
    for key in ("steps_per_second", "compile_seconds", "flops_per_step", "bytes_per_step", "peak_bytes_planned"):
        assert figures[key] > 0, key


@pytest.mark.soak
def test_the_bench_counts_one_step_however_many_a_dispatch_has():
    def flops(substeps):
        settings = config.read_recipe("configs/gaussians8.py")
        settings.model.channels, settings.train.substeps = (8,), substeps
        return bench.measure(settings, 1)["flops_per_step"]

    assert flops(2) == pytest.approx(flops(8), rel=0.02)
