"""Training through the door users come in by: what a run leaves, and that the same config gives the same run."""

import json
import random
import re
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import FULL, QUICK, TINY, free_port, is_free, metrics, run, start
from tensorboard.backend.event_processing import event_accumulator

from sintrovae_jax import checkpoint, config, dispatch, inference, workdirs


def final_state(workdir: Path):
    """The newest checkpoint as a host state."""
    settings = config.read(workdir)
    create = dispatch.from_config(settings)[2]
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    restored = checkpoints.restore(jax.eval_shape(create))
    checkpoints.close()
    return restored


def test_a_run_leaves_what_it_promises(trained):
    results = json.loads((trained / "results.json").read_text())
    assert {"gnelbo", "kl", "jsd", "paper_kl", "paper_jsd", "step", "seconds", "examples_per_second"} == set(results)
    assert results["step"] == 60
    assert all(np.isfinite(v) for v in results.values())
    assert json.loads((trained / "config.json").read_text())["train"]["batch_size"] == 32
    names = {path.name for path in (trained / "figures").iterdir()}
    pictures = {f"{p}{s}.png" for p in ("samples", "reconstructions", "interpolations") for s in ("", "_0000030")}
    assert names == {"density.png", *pictures}
    events = event_accumulator.EventAccumulator(str(trained))
    events.Reload()
    assert {"samples", "reconstructions", "interpolations", "loss_encoder", "eval/gnelbo"} <= set(
        events.Tags()["tensors"]
    )
    assert not list(trained.rglob(".*.*")), "a temporary file was left behind"


def test_metrics_have_one_row_a_log_step(trained):
    rows = metrics(trained)
    assert [int(row["step"]) for row in rows] == list(range(5, 61, 5))
    assert [row["kl_fake"] == "" for row in rows] == [True] * 4 + [False] * 8, "the VAE phase has no fakes"
    np.testing.assert_allclose([float(row["learning_rate"]) for row in rows], [1e-2] * 8 + [1e-3] * 4, rtol=1e-6)
    last = {k: float(v) for k, v in rows[-1].items()}
    assert last["kl_gap"] == pytest.approx(min(last["kl_fake"], last["kl_recon"]) - last["kl_real"], abs=1e-5)


def compilations(log: str) -> int:
    """How many steps a run with JAX_LOG_COMPILES compiled, by jax's names for a pmap."""
    return len(re.findall(r"Finished XLA compilation of jit\((?:_fun|\S*train_step\S*)\)", log))


def test_training_compiles_once(trained):
    compiled = compilations((trained.parent / "log").read_text())
    assert compiled == 2, "one of the VAE phase, one adversarial; a milestone, pictures and saves compile nothing"


def test_the_newest_and_the_best_checkpoints_stay(trained):
    steps = checkpoint.Checkpoints(trained, read_only=True).steps()
    assert {40, 60} <= set(steps), "evaluated at 40 and 60, one of which is the best; 60 and 40 are also the newest"
    assert 20 not in steps


def test_running_it_again_does_nothing(trained):
    before = (trained / "results.json").stat().st_mtime_ns
    assert "already trained to step 60" in run("gaussians8", trained, *TINY, *FULL)
    assert (trained / "results.json").stat().st_mtime_ns == before


def by_address(recipe, workdir, *args):
    """Two processes of two devices each, told where to meet."""
    address = f"127.0.0.1:{free_port()}"
    return [start(recipe, workdir, *args, f"--config.distributed={address},2,{i}", devices=2) for i in range(2)]


def by_slurm(recipe, workdir, *args):
    """The same, told by nothing but the environment that srun gives them."""
    # jax meets at a port that follows from the job's number: one is taken that is free now.
    number = next(n for n in random.sample(range(4096), 100) if is_free(2**16 - 2**12 + n))
    job = {
        "SLURM_JOB_ID": str(number),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
    }
    tasks = [job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    return [start(recipe, workdir, *args, devices=2, **task) for task in tasks]


@pytest.mark.soak
def test_the_devices_do_not_change_the_run(tmp_path):
    """One device, and 2 processes of 2 devices, give the same losses.

    Of the adversarial step: for points see test_pods.py, of convolutions test_translation.py.
    """
    # Adam moves a weight whose gradient is all rounding as far as any other, and BatchNorm's deep networks amplify
    # that: the first steps agree to 1e-7, the fiftieth would to 1e-2. What is not rounding differs from the first.
    args = [*LONG, VAE, "--config.train.steps=20", "--config.optimizer.learning_rate=5e-6"]
    run("digits", tmp_path / "one", *args)
    together(by_slurm("digits", tmp_path / "pair", *args))

    wanted = metrics(tmp_path / "one")
    assert len(wanted) == 20
    same_terms(metrics(tmp_path / "pair"), wanted, "pair")
    # A checkpoint does not tell how many devices wrote it.
    shapes = [jax.tree.map(np.shape, final_state(tmp_path / name)) for name in ("one", "pair")]
    assert shapes[0] == shapes[1]


def same_terms(got: list[dict], wanted: list[dict], name: str):
    """Whether two runs have the same losses and terms, up to rounding."""
    assert len(got) == len(wanted)
    for k in (k for k in wanted[0] if k.startswith(("loss", "rec", "kl_", "exp")) and k != "kl_gap"):
        a, b = ([float(row[k] or 0) for row in rows] for rows in (got, wanted))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7, err_msg=f"{name}: {k}")


# Of the digits: small images, augmented, and one block less.
SMALL = [
    "--config.data.image_size=8",
    "--config.data.translate=1",
    "--config.data.flip=True",
    "--config.model.channels=(8,)",
]
LONG = [
    *TINY,
    QUICK,
    *SMALL,
    "--config.train.batch_size=8",
    "--config.train.substeps=1",
    "--config.log.every=1",
    "--config.train.steps=10000",
    "--config.objective.num_vae=0",
]
VAE = "--config.objective.name=vae"  # where it does not matter: these compile faster
MLP = "--config.model.family=mlp"


def wait_for(processes, workdir, until: int):
    """Returns once the run has logged step `until`."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        rows = metrics(workdir) if (workdir / "metrics.csv").exists() else []
        if rows and int(rows[-1]["step"] or 0) >= until:
            return
        time.sleep(0.005)
    raise AssertionError(f"step {until} was not reached in time: {[p.communicate()[0] for p in processes]}")


def start_and_wait(recipe, workdir, *args, until: int):
    """Starts a long run and returns once it has logged step `until`."""
    process = start(recipe, workdir, *LONG, *args)
    wait_for([process], workdir, until)
    return process


@pytest.mark.soak
def test_killed_and_resumed_is_the_same_as_never_killed(tmp_path, rng):
    process = start_and_wait("digits", tmp_path / "killed", until=rng.randrange(25, 45))
    while not workdirs.has_checkpoints(tmp_path / "killed"):
        time.sleep(0.005)  # saved while training continues
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was over before it was killed"
    last = int(metrics(tmp_path / "killed")[-1]["step"]) + 5
    end = [*LONG, f"--config.train.steps={last}"]
    assert "resuming from step" in run("digits", tmp_path / "killed", *end)
    run("digits", tmp_path / "whole", *end)
    a, b = final_state(tmp_path / "whole"), final_state(tmp_path / "killed")
    assert int(a.step) == last
    jax.tree.map(np.testing.assert_array_equal, a, b)
    steps = [row["step"] for row in metrics(tmp_path / "killed")]
    assert steps == [row["step"] for row in metrics(tmp_path / "whole")], "rows repeat or are missing"


@pytest.mark.soak
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_resume(tmp_path, signum):
    """For hangups see test_streams.py."""
    process = start_and_wait("digits", tmp_path, MLP, VAE, until=30)
    process.send_signal(signum)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signum, out
    assert "Traceback" not in out
    saved = int(re.search(r"stopped: saved step (\d+) of 10000; run the same command again", out).group(1))
    assert int(final_state(tmp_path).step) == saved < 10_000
    end = [*LONG, MLP, VAE, f"--config.train.steps={saved + 5}"]
    assert f"resuming from step {saved}" in run("digits", tmp_path, *end)


def test_a_diverged_run_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    # A milestone that multiplies the learning rate by 1e12 after a good checkpoint.
    bad = ["--config.optimizer.milestones=(40,)", "--config.optimizer.decay=1e12", "--config.train.steps=200"]
    out = run("gaussians8", tmp_path, *TINY, *bad, "--config.objective.num_vae=0", code=3)
    assert "Traceback" not in out
    error = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert re.search(r"step 4\d: \w+ .*(finite|infinite); (raise|lower) (objective|optimizer)\.\w+", error[0]), error
    restored = final_state(tmp_path)
    assert 20 <= int(restored.step) <= 40
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored))


@pytest.mark.soak
def test_any_number_of_processes_loads_what_any_other_wrote(tmp_path):
    """Written by one process on one device, sampled from by two of two devices each; and the other way round."""
    args = [*TINY, QUICK, "--config.train.steps=20", "--config.eval.num_samples=40"]
    run("gaussians8", tmp_path / "one", *args)
    together(by_address("gaussians8", tmp_path / "one", *args, "--mode", "sample"))
    together(by_address("gaussians8", tmp_path / "pair", *args))
    run("gaussians8", tmp_path / "pair", *args, "--mode", "sample")
    for name in ("one", "pair"):
        sampled, model = np.load(tmp_path / name / "samples.npz"), inference.load(tmp_path / name)
        np.testing.assert_array_equal(sampled["z"], model.prior(92, 40))
        np.testing.assert_allclose(sampled["x"], model.sample(92, 40), rtol=1e-5, atol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, model.variables, final_state(tmp_path / name).variables)


def together(processes):
    """Waits for the processes of one run, all of which must end well."""
    outs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outs
