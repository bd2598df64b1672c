"""Processes of the command line, forked from one that has imported everything.

Importing TensorFlow takes most of what a short run takes, and a run of several processes takes it several times.
"""

import atexit
import gc
import importlib
import itertools
import multiprocessing
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
# XLA's older emitters compile a training step in two thirds of the time, one module faster than 32. Later versions may
# not know these flags.
_FAST = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
COMPILE_FAST = _FAST if metadata.version("jaxlib").startswith("0.10.") else ""
GC = 50_000, 20, 20  # tracing makes many objects at once, almost none of them garbage
_server = multiprocessing.get_context("forkserver")
_ALL = ["sintrovae_jax.main", "sintrovae_jax.train", "clu.metric_writers", "sklearn.datasets", "tensorboard"]
_server.set_forkserver_preload(_ALL)
_logs, _number = tempfile.TemporaryDirectory(), itertools.count()


class Process:
    """Like a `subprocess.Popen` of `python -m sintrovae_jax.main ARGS`, with stdout and stderr in the file `log`.

    env: what is read after imports (not what jax reads). without: a module that cannot be imported. first: the file of
    one that is imported first.
    """

    def __init__(self, args: list[str], devices: int = 1, without: str = "", first: str = "", **env):
        env = {"XLA_FLAGS": f"{COMPILE_FAST} --xla_force_host_platform_device_count={devices}"} | env
        self.log = Path(_logs.name) / str(next(_number))
        # daemon: one that a failed test leaves behind does not keep the tests from ending.
        self._process = _server.Process(target=_main, args=(args, env, str(self.log), without, first), daemon=True)
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        os.kill(self._process.pid, signum)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self._process.join(timeout)
        out = self.log.read_text(errors="replace")
        assert self._process.exitcode is not None, f"not over after {timeout} s: {out}"
        return out, None


def _main(args, env, log, without, first):
    os.environ.update(env)
    gc.freeze()  # of what was imported nothing is garbage
    gc.set_threshold(*GC)
    os.chdir(ROOT)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if without:
        package, _, name = without.rpartition(".")
        vars(importlib.import_module(package)).pop(name, None)
        sys.modules[without] = None
    if first:
        sys.path.insert(0, str(Path(first).parent))
        importlib.import_module(Path(first).stem)
    from sintrovae_jax import cli, main

    sys.argv = ["sintrovae_jax.main", *args]
    try:
        cli.start(main.main)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
