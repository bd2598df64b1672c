"""Processes of the command line, forked from one that has imported everything.

Importing TensorFlow takes most of what a short run takes, and a run of several processes takes it several times.
"""

import atexit
import importlib
import itertools
import multiprocessing
import os
import sys
from pathlib import Path

from conftest import ROOT, free_port

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["sintrovae_jax.main", "sintrovae_jax.train", "sklearn.datasets", "tensorboard"])
_number = itertools.count()
HEARTBEAT = 10  # seconds, the least there is


class Process:
    """Like a `subprocess.Popen` of `python -m sintrovae_jax.main ARGS`, with stdout and stderr in the file `log`.

    without: a module that cannot be imported.
    """

    def __init__(self, args: list[str], devices: int, log: Path, without: str = "", **env):
        flags = f"--xla_force_host_platform_device_count={devices}"
        env = {"XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "3"} | env
        self.log = log
        self._process = _server.Process(target=_main, args=(args, env, str(log), without))
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


def _main(args, env, log, without):
    os.environ.update(env)
    os.chdir(ROOT)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if without:
        package, _, name = without.rpartition(".")
        vars(importlib.import_module(package)).pop(name, None)
        sys.modules[without] = None
    from sintrovae_jax import cli, main

    sys.argv = ["sintrovae_jax.main", *args]
    try:
        cli.start(main.main)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def processes(count: int, recipe: str, logs: Path, *args: str, devices: int = 1, each=(), **options) -> list[Process]:
    """Starts the processes of one run. logs: a folder for what they print. each: arguments of process 0, 1, …"""
    address, number = f"127.0.0.1:{free_port()}", next(_number)
    args = ["--config", f"configs/{recipe}.py", *args, f"--config.distributed_heartbeat={HEARTBEAT}"]
    group = []
    for i in range(count):
        where = [f"--config.distributed={address},{count},{i}"] if count > 1 else []
        own = each[i] if each else []
        group.append(Process([*args, *where, *own], devices, logs / f"{number}.{i}.log", **options))
    return group


def ended(group: list[Process], timeout: float = 200) -> tuple[list[int], list[str]]:
    """Waits for processes to end. Returns their exit codes and what they printed."""
    outs = [process.communicate(timeout)[0] for process in group]
    return [process.returncode for process in group], outs
