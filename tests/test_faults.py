"""What fails outside of the program: data that vanishes, disks that are full, devices that are not there.

A line, the exit code on which launchers start it again, and all that was trained in a checkpoint if there is room.
"""

import contextlib
import errno
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import QUICK, ROOT, TINY, command, environment, metrics, run
from test_checkpoint import at, restore
from test_data import settings
from test_images import numbered_folder
from test_train import final_state

from sintrovae_jax import checkpoint, cli, files
from sintrovae_jax.data import failures, folder, pipeline, sources
from sintrovae_jax.errors import Unavailable, UserError
from sintrovae_jax.parallel import Shard

VAE = [*TINY, QUICK, "--config.objective.name=vae"]  # what it trains does not matter
PICTURES = [
    *(*VAE, "--config.model.family=mlp", "--config.train.batch_size=8", "--config.log.every=10"),
    *("--config.data.image_size=8", "--config.data.memory_gib=1e-9"),
]


@contextlib.contextmanager
def once_at(step: int, workdir: Path, act: Callable[[], None]) -> Iterator[None]:
    """Acts as soon as the run in the block has logged this step."""
    over = threading.Event()

    def watch():
        while not over.wait(0.01):
            if (workdir / "metrics.csv").exists() and int(metrics(workdir)[-1]["step"] or 0) >= step:
                act()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """As a full disk, but that its error is another one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def error_of(out: str) -> str:
    """The error of a run, the last line that it printed, and its only one."""
    lines = out.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ") or "Traceback" in line] == lines[-1:], out
    return lines[-1]


def test_a_run_whose_data_vanishes_saves_where_it_is(tmp_path):
    """It goes on from there when the data is back."""
    pictures, workdir = numbered_folder(tmp_path / "pictures", 40), tmp_path / "run"
    args = [*PICTURES, f"--config.data.source=folder:{pictures}"]
    away = tmp_path / "away"
    with once_at(20, workdir, lambda: os.rename(pictures, away)):
        says = error_of(run("digits", workdir, *args, "--config.train.steps=100000", code=74))
    assert says.startswith("error: the pictures are no longer there: ")
    step = int(re.search(r"; saved step (\d+) of 100000; run the same command again", says).group(1))
    assert int(final_state(workdir).step) == step >= 20
    assert not (workdir / "owner.json").exists()
    away.rename(pictures)
    out = run("digits", workdir, *args, f"--config.train.steps={step + 5}")
    assert f"resuming from step {step}" in out
    assert "skipped" not in out, "no picture counts as damaged"


def dispatches(source) -> Iterator[dict]:
    data = settings("folder:here", image_size=4)
    shard = Shard(4, 0, 1, 4)
    return pipeline.batches(source, data, seed=0, start=0, stop=1000, substeps=1, shard=shard)


def until_it_fails(batches: Iterator[dict]) -> Exception:
    with pytest.raises(Exception) as caught:
        for _ in batches:
            pass
    return caught.value


@pytest.mark.parametrize("emptied", [False, True], ids=["gone", "empty"])
def test_pictures_that_are_all_gone_are_not_damaged(tmp_path, emptied, caplog):
    """Empty: as a folder where a disk is no longer mounted."""
    source = folder.build(str(numbered_folder(tmp_path / "pictures", 40)), sources.Format(4, 1), 0.1, 1)
    batches = dispatches(source)
    next(batches)
    (tmp_path / "pictures").rename(tmp_path / "away")
    if emptied:
        (tmp_path / "pictures").mkdir()
    error = until_it_fails(batches)
    assert isinstance(error, Unavailable)
    assert str(error).startswith("the pictures are no longer there: [Errno 2] No such file or directory")
    assert source.skipped == {}
    assert "skipped" not in caplog.text
    with pytest.raises(Unavailable):
        source.test(3, 0)


def test_some_that_are_gone_are_skipped(tmp_path, caplog):
    source = folder.build(str(numbered_folder(tmp_path, 40)), sources.Format(4, 1), 0.1, 1)
    for path in sorted(tmp_path.iterdir())[::2]:
        path.unlink()
    assert sum(1 for _ in zip(range(30), dispatches(source), strict=False)) == 30
    assert source.skipped


@pytest.mark.parametrize("error", [UserError("the third is bad"), ZeroDivisionError("a bug")])
def test_an_error_while_a_picture_is_read_keeps_its_form(error):
    """TensorFlow makes it an error of its own, with hundreds of lines."""

    def read(names, x):
        raise error

    source = folder.Files(read, list("0123"), ["4"], sources.Format(4, 1), {}, at_once=2, look=len)
    assert until_it_fails(dispatches(source)) is error


def test_the_command_line_has_tensorflow_print_no_error_that_it_raises(monkeypatch):
    """With hundreds of lines each. jax asks for warnings."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    cli.start(lambda argv: None)
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"


def test_what_tensorflow_says_of_files_is_one_line(tmp_path):
    import tensorflow as tf

    with pytest.raises(Unavailable) as caught, failures.reading():
        next(iter(tf.data.TFRecordDataset(str(tmp_path / "nowhere"))))
    assert "No such file" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(tf.errors.InvalidArgumentError), failures.reading():
        tf.reshape(tf.zeros(3), (2, 2))


def test_a_full_disk_ends_a_run_in_a_line_and_what_was_saved_stays(tmp_path):
    """The event files of TensorBoard, and metrics.csv, have no room; checkpoints are smaller."""
    run("gaussians8", tmp_path, *VAE, "--config.train.steps=20")  # compiles, so that the cache is not cut short
    with no_file_larger_than(20_000):
        says = error_of(run("gaussians8", tmp_path, *VAE, "--config.train.steps=100000", code=74))
    assert re.fullmatch(rf"error: cannot write {tmp_path}/(metrics.csv|events\S*|checkpoints): File too large", says)
    step = int(final_state(tmp_path).step)
    assert step >= 20
    out = run("gaussians8", tmp_path, *VAE, f"--config.train.steps={step + 10}")
    assert f"resuming from step {step}" in out
    assert [int(row["step"]) for row in metrics(tmp_path)] == list(range(5, step + 11, 5))


def test_a_full_disk_costs_no_checkpoint_that_is_there(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(at(10))
    checkpoints.wait()
    with no_file_larger_than(100):
        with pytest.raises(Unavailable, match=rf"^cannot write {tmp_path}/checkpoints: File too large$"):
            checkpoints.save(at(20))
            checkpoints.wait()
        with pytest.raises(Unavailable):  # it says so as long as it is not saved
            checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restore(tmp_path), at(10))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "file"), "No space left on device"),
        (ValueError('RESOURCE_EXHAUSTED: Failed writing: "x": No space left on device [source]'), "No space left"),
        (ValueError("a bug"), ""),
    ],
)
def test_a_disk_s_reason_is_found_in_what_libraries_make_of_it(error, reason):
    assert files.storage_reason(error).startswith(reason)
    outer = RuntimeError("it failed")
    outer.__cause__ = error
    assert files.storage_reason(outer).startswith(reason)
    assert bool(files.storage_reason(outer)) == bool(reason)
    with pytest.raises(Unavailable if reason else RuntimeError), files.storing(Path("file")):
        raise outer


@pytest.mark.soak
@pytest.mark.parametrize(
    ("platform", "code", "says"),
    [
        ("nonsense", 2, "error: JAX_PLATFORMS=nonsense: "),
        ("cuda", 2, "error: JAX_PLATFORMS=cuda: jax is installed without support for it"),
        ("tpu", 74, "error: no device: Unable to initialize backend 'tpu'"),
    ],
)
def test_a_device_that_is_not_there(tmp_path, platform, code, says):
    """One that another process uses fails in the same way as one that does not exist: it may come back."""
    if platform == "cuda" and any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        pytest.skip("jax is installed with support for it")
    line = [sys.executable, "-m", "sintrovae_jax.main", *command("gaussians8", tmp_path / "run", *VAE)]
    env = environment(JAX_PLATFORMS=platform, TPU_SKIP_MDS_QUERY="1")
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert error_of(done.stderr).startswith(says)
    assert not (tmp_path / "run").exists()
