"""Runs the real command line in real processes, on tiny networks."""

import csv
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from forks import COMPILE_FAST, ROOT, Process

from sintrovae_jax.data import readers

os.environ["JAX_PLATFORMS"] = "cpu"  # here as in the child processes, or numbers that must be equal are not
# Many processes compile the same programs: each is compiled once. Set before jax is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/sintrovae_jax-tests-{os.getuid()}")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Most of the time is compilation of programs that run for seconds, and its last third makes no difference here.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("XLA_FLAGS", COMPILE_FAST)
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}

MAIN = "sintrovae_jax.main"
TINY = [
    "--config.model.channels=(8,)",
    "--config.train.batch_size=32",
    "--config.train.substeps=5",
    "--config.log.every=5",
    "--config.log.figures_every=0",
    "--config.checkpoint.every=20",
    "--config.checkpoint.best=",
    "--config.eval.evaluators=()",
    "--config.eval.batch_norm=running",
]


def environment(devices: int = 1, **extra) -> dict:
    """The environment of a child process with so many simulated CPU devices."""
    flags = f"{COMPILE_FAST} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)} | extra


def start(
    recipe: str, workdir: Path | None, *args: str, devices: int = 1, env: dict | None = None, module: str = MAIN, **late
):
    """Starts the command line; stdout and stderr are one pipe.

    With an environment or a module of its own, as users do; else forked, which is the same and seconds faster.
    late: environment of a forked one (see `Process`).
    """
    args = ["--config", f"configs/{recipe}.py", *(["--workdir", str(workdir)] if workdir else []), *args]
    if env is None and module == MAIN:
        return Process(args, devices, **late)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    line = [sys.executable, "-m", module, *args]
    return subprocess.Popen(line, cwd=ROOT, env=environment(devices, **(env or {})), **pipes)


def run(*args, devices: int = 1, code: int = 0, **kwargs) -> str:
    """Runs the command line to its end, checks its exit code, returns what it printed."""
    process = start(*args, devices=devices, **kwargs)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == code, out
    return out


def metrics(workdir: Path) -> list[dict]:
    with (workdir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


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
    """A workdir of 60 steps on 8 Gaussians: VAE phase, milestone, pictures and evaluation included."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    out = run("gaussians8", workdir, *TINY, *FULL, env={"JAX_LOG_COMPILES": "1"})
    (workdir.parent / "log").write_text(out)
    return workdir


FULL = [
    "--config.train.steps=60",
    "--config.objective.num_vae=20",
    "--config.optimizer.learning_rate=0.01",
    "--config.optimizer.milestones=(40,)",
    "--config.checkpoint.best=jsd",
    "--config.eval.evaluators=('density',)",
    "--config.eval.num_samples=500",
    "--config.eval.every=40",
    "--config.log.figures_every=30",
]


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen]:
    """The processes that read pictures, as they are started."""
    processes, start = [], readers._start

    def recorded(*handles):
        processes.append(start(*handles))
        return processes[-1]

    monkeypatch.setattr(readers, "_start", recorded)
    return processes


def pytest_collection_modifyitems(items):
    """Tests that share what takes long to make (a fixture of a module, the session's run) go to one worker."""
    for item in items:
        scopes = {name: found[-1].scope for name, found in item._fixtureinfo.name2fixturedefs.items()}
        if "trained" in scopes:
            item.add_marker(pytest.mark.xdist_group("trained"))
        elif "module" in scopes.values():
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
