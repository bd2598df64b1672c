"""Runs the real command line on tiny networks: in this process, or in processes of their own where that matters."""

import contextlib
import csv
import fcntl
import gc
import io
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import COMPILE_FAST, GC, ROOT, Process

from sintrovae_jax.data import readers

gc.set_threshold(*GC)

os.environ["JAX_PLATFORMS"] = "cpu"  # here as in the child processes, or numbers that must be equal are not
# Many processes compile the same programs: each is compiled once. Set before jax is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/sintrovae_jax-tests-{os.getuid()}")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Most of the time is compilation of programs that run for seconds, and its last third makes no difference here.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("XLA_FLAGS", COMPILE_FAST)
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}

QUICK = "--config.log.figures=False"  # for runs whose figures nobody looks at: they take a quarter of a tiny run
TINY = [
    "--config.model.channels=(8,)",
    "--config.train.batch_size=32",
    "--config.train.substeps=5",
    "--config.log.every=5",
    "--config.log.figures_every=0",
    "--config.log.report=False",
    "--config.checkpoint.every=20",
    "--config.checkpoint.best=",
    "--config.eval.evaluators=()",
    "--config.eval.batch_norm=running",
]


def environment(devices: int = 1, **extra) -> dict:
    """The environment of a child process with so many simulated CPU devices."""
    flags = f"{COMPILE_FAST} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)} | extra


def command(recipe: str, workdir: Path | None, *args: str) -> list[str]:
    """The arguments of the command line for a recipe of this repository."""
    return ["--config", f"configs/{recipe}.py", *(["--workdir", str(workdir)] if workdir else []), *args]


def start(recipe: str, workdir: Path | None, *args: str, devices: int = 1, **options) -> Process:
    """Starts the command line in a process of its own. options: those of `Process`."""
    return Process(command(recipe, workdir, *args), devices, **options)


def run(recipe: str, workdir: Path | None, *args: str, devices: int = 1, code: int = 0, **options) -> str:
    """Runs the command line to its end, checks its exit code, returns what it printed on stdout and stderr.

    On one device in this process, where most of jax is compiled already; on several in one of its own.
    options: of `here`, or of `Process` for several devices.
    """
    if devices > 1:
        process = start(recipe, workdir, *args, devices=devices, **options)
        out, ended = process.communicate(timeout=300)[0], process.returncode
    else:
        out, ended = here(command(recipe, workdir, *args), **options)
    assert ended == code, out
    return out


def here(args: list[str], program: Callable | None = None, log_compiles: bool = False) -> tuple[str, int]:
    """Runs a command line in this process. Returns what it printed, and its exit code. A traceback is the test's.

    program: `main.main` if not given. log_compiles: jax tells what it compiles, as by JAX_LOG_COMPILES=1.
    """
    import jax

    from sintrovae_jax import cli, main

    out, argv = io.StringIO(), ["sintrovae_jax.main", *args]
    loggers = [logging.getLogger(name) for name in ("sintrovae_jax", "asyncio", "jax")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    with contextlib.ExitStack() as stack:
        for manager in (contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.chdir(ROOT)):
            stack.enter_context(manager)
        if log_compiles:
            stack.enter_context(jax.log_compiles())
            loggers[-1].addHandler(logging.StreamHandler(out))
        try:
            cli.reporting(program or main.main)(argv)
        except SystemExit as error:
            return out.getvalue(), error.code
        finally:
            for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
                logger.handlers, logger.propagate = handlers, propagate
                logger.setLevel(level)
    return out.getvalue(), 0


def metrics(workdir: Path) -> list[dict]:
    with (workdir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def stopped_after(step: int, workdir: Path, copy: Path) -> Path:
    """A copy of a workdir without the checkpoints after that of `step`, from which a run then goes on."""
    shutil.copytree(workdir, copy)
    for path in (copy / "checkpoints").iterdir():
        if path.name.isdecimal() and int(path.name) > step:
            shutil.rmtree(path)
    return copy


@pytest.fixture
def rng() -> random.Random:
    """Chance that falls the same every time; another way by SINTROVAE_JAX_SEED."""
    return random.Random(os.environ.get("SINTROVAE_JAX_SEED", "0"))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def is_free(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) != 0


# It leaves out which generation of an object it sends, without which Orbax cannot write one again.
SERVE = """
import contextlib, sys
from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects
download = objects.download

def with_generation(request, response, storage):
    with contextlib.suppress(objects.NotFound):
        place = request.params["bucket_name"], request.params["object_id"]
        response["x-goog-generation"] = storage.get_file_obj(*place)["generation"]
    return download(request, response, storage)

objects.download = with_generation
server.create_server("127.0.0.1", int(sys.argv[1]), True, "bucket").run()
"""


@pytest.fixture
def bucket() -> dict:
    """The environment in which gs://bucket is a server of Google's storage interface on this machine.

    Nothing of Google's is reached. TensorFlow knows Google's address alone, so that it must not be asked.
    """
    pytest.importorskip("gcsfs")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    env = {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "EPATH_USE_TF": "0"}
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], env=environment(), stderr=subprocess.DEVNULL)
    try:
        while is_free(port):
            assert server.poll() is None
            time.sleep(0.1)
        yield env
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A workdir of 60 steps on 8 Gaussians: VAE phase, milestone, pictures and evaluation included.

    It is trained once, and every worker of these tests has a copy.
    """
    top = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        top = top.parent
    with (top / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (top / "trained").exists():
            out = run("gaussians8", top / "training" / "run", *TINY, *FULL, log_compiles=True)
            (top / "training" / "log").write_text(out)
            (top / "training").rename(top / "trained")
    copy = tmp_path_factory.mktemp("copy") / "trained"
    shutil.copytree(top / "trained", copy)
    return copy / "run"


FULL = [
    "--config.train.steps=60",
    "--config.objective.num_vae=20",
    "--config.optimizer.learning_rate=0.01",
    "--config.optimizer.milestones=(40,)",
    "--config.checkpoint.best=jsd",
    "--config.eval.evaluators=('density',)",
    "--config.eval.num_samples=500",
    "--config.eval.batch_size=16384",  # the grid in few calls
    "--config.eval.every=40",
    "--config.log.figures_every=30",
    "--config.log.report=True",
]


@pytest.fixture
def latin1(tmp_path) -> str:
    """A folder whose name is in Latin-1."""
    place = os.path.join(tmp_path, os.fsdecode(b"caf\xe9"))
    try:
        os.mkdir(place)
    except OSError:
        pytest.skip("this file system has UTF-8 alone")
    return place


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen]:
    """The processes that read pictures, as they are started."""
    processes, start = [], readers._start

    def recorded(*handles):
        processes.append(start(*handles))
        return processes[-1]

    monkeypatch.setattr(readers, "_start", recorded)
    return processes


# The files that take longest, of `make soak` and of `make test`. These give each file to one worker, so that what its
# tests share is made once. They come first, so that no worker is left with one of them when the other is done.
LONGEST = (
    *("growth", "conv", "pods", "evaluate", "train", "notebooks", "translation", "tfds", "groups", "inference"),
    *("images", "launch", "convert", "train_step", "standing", "inception", "errors", "workdirs", "load", "style"),
)


def pytest_collection_modifyitems(items):
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.module.__name__, len(places)))
