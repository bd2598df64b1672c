"""Runs of the two-encoder family: scored and translated, in parts, on more devices, loaded elsewhere."""

import json
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import TINY as COMMON
from conftest import environment, metrics, run, start
from PIL import Image
from test_inference import WITHOUT_TENSORFLOW
from test_train import by_address, compilations, final_state, together, wait_for

from sintrovae_jax import config as configs
from sintrovae_jax import inference, modes
from sintrovae_jax.data import pipeline
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import two_encoder
from sintrovae_jax.official import convert
from sintrovae_jax.plots import draw

TINY = [
    *COMMON,
    "--config.data.image_size=8",
    "--config.model.channels=(4,8)",
    "--config.train.batch_size=8",
    "--config.train.steps=60",
    "--config.objective.name=soft_intro",
    "--config.objective.num_vae=0",
    "--config.optimizer.milestones=()",
    "--config.optimizer.learning_rate=1e-4",
    "--config.checkpoint.every=10",
    "--config.checkpoint.keep=20",
    "--config.eval.evaluators=transfer",
    "--config.eval.num_samples=60",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(workdir, log) of a run."""
    workdir = tmp_path_factory.mktemp("translation") / "whole"
    best = "--config.checkpoint.best=transfer_error"
    return workdir, run("sprites", workdir, *TINY, best, log_compiles=True)


@pytest.mark.soak
def test_a_run_is_scored_and_pictured(whole):
    results = json.loads((whole[0] / "results.json").read_text())
    assert results["transfer_error"] > 0
    assert "batch_norm" not in results, "it has none"
    made = {file.name for file in (whole[0] / "figures").iterdir()}
    assert made == {"samples.png", "reconstructions.png", "interpolations.png", "translations.png"}
    assert compilations(whole[1]) == 1


@pytest.mark.soak
def test_a_run_in_parts_is_the_run(whole, tmp_path, rng):
    killed = start("sprites", tmp_path, *TINY)
    wait_for([killed], tmp_path, rng.randrange(10, 40))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "it was over before it was killed"
    assert "resuming from step" in run("sprites", tmp_path, *TINY)
    jax.tree.map(np.testing.assert_array_equal, final_state(whole[0]), final_state(tmp_path))


@pytest.mark.soak
def test_the_processes_do_not_change_the_run_and_another_loads_it(whole, tmp_path):
    """Two processes of two devices each beside one of one, which samples from what they have written."""
    pair, few = tmp_path / "pair", [*TINY, "--config.train.steps=20"]
    together(by_address("sprites", pair, *few))
    for one, four in zip(metrics(whole[0])[:4], metrics(pair), strict=True):
        for name in one.keys() - {"seconds", "examples_per_second", "kl_gap"}:
            if one[name]:
                assert float(four[name]) == pytest.approx(float(one[name]), rel=1e-3), (one["step"], name)
    run("sprites", pair, *few, "--mode", "sample")
    sampled, model = np.load(pair / "samples.npz"), inference.load(pair)
    np.testing.assert_allclose(sampled["x"], model.sample(model.config.seed, 60), rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused_and_kept(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["class_dim"] = 3
    (workdir / "config.json").write_text(json.dumps(config))
    assert "holds another model" in run("sprites", workdir, *TINY, "--config.model.class_dim=3", code=2)
    assert (workdir / "checkpoints" / "60").is_dir()
    with pytest.raises(UserError, match=r"the official release has no networks of model\.family=two_encoder"):
        convert.to_torch(str(whole[0]), tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_another_process_without_tensorflow_gets_the_same_model(whole, tmp_path):
    model, x = inference.load(whole[0]), pipeline.build(configs.read(whole[0]).data).test(10, 0)
    np.save(tmp_path / "x.npy", x)
    script = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(whole[0]), str(tmp_path / "x.npy"), str(tmp_path / "y.npz")]
    subprocess.run(script, check=True, env=environment(), cwd=tmp_path)
    got = np.load(tmp_path / "y.npz")
    np.testing.assert_array_equal(got["samples"], model.sample(7, 50))
    np.testing.assert_array_equal(got["recon"], model.reconstruct(x))
    np.testing.assert_array_equal(got["recon"], model.translate(x, x))


def test_the_mode_draws_test_images_or_the_two_that_are_named(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "figures")
    run("sprites", workdir, *TINY, "--mode", "translate")
    drawn, again = (folder / "figures" / "translations.png" for folder in (whole[0], workdir))
    assert again.read_bytes() == drawn.read_bytes()

    model, config = inference.load(workdir), configs.read(workdir)
    x = pipeline.build(config.data).test(4, 0)
    Image.fromarray((x[0] * 255).round().astype(np.uint8)).save(tmp_path / "a.png")
    modes.run("translate", config, workdir, modes.Ends(str(tmp_path / "a.png"), "3"))
    draw.grid(tmp_path / "wanted.png", *two_encoder.translation(model, x[0], x[3]))
    assert (workdir / "figures" / "translation.png").read_bytes() == (tmp_path / "wanted.png").read_bytes()
    with pytest.raises(UserError, match="no image that can be read"):
        modes.run("translate", config, workdir, modes.Ends(str(tmp_path / "none.png"), "3"))
