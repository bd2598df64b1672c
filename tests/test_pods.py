"""Several real processes of one run: told to stop, killed, hung, failing; and going on with others."""

import itertools
import json
import os
import re
import shutil
import signal
import time
import urllib.parse
import urllib.request

import jax
import numpy as np
import pytest
from conftest import QUICK, TINY, free_port, metrics, run
from forks import Process
from PIL import Image
from test_train import final_state, same_terms, wait_for

from sintrovae_jax import cancellation, evaluators
from sintrovae_jax.evaluators.evaluator import Evaluator

HEARTBEAT = 10  # seconds, the least there is
SLACK = 20  # seconds that a busy machine may take for what is immediate on others
RUN = [*TINY, QUICK, "--config.objective.name=vae"]  # what it trains does not matter


def processes(count: int, recipe: str, *args: str, devices: int = 1, each=(), **options) -> list[Process]:
    """Starts the processes of one run. each: arguments of process 0, 1, …"""
    address = f"127.0.0.1:{free_port()}"
    args = ["--config", f"configs/{recipe}.py", *args, f"--config.distributed_heartbeat={HEARTBEAT}"]
    group = []
    for i in range(count):
        where = [f"--config.distributed={address},{count},{i}"] if count > 1 else []
        group.append(Process([*args, *where, *(each[i] if each else [])], devices, **options))
    return group


def ended(group: list[Process], timeout: float = 200) -> tuple[list[int], list[str]]:
    """Waits for processes to end. Returns their exit codes and what they printed."""
    outs = [process.communicate(timeout)[0] for process in group]
    return [process.returncode for process in group], outs


def equal(a, b):
    """Whether the newest checkpoints of two workdirs are the same, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, final_state(a), final_state(b))


def saved(outs) -> set[int]:
    """The steps that processes say they saved before they stopped."""
    return {int(re.search(r"stopped: saved step (\d+) of", out).group(1)) for out in outs}


def in_log(process, text, timeout=200):
    """Waits until a process has printed this."""
    deadline = time.monotonic() + timeout
    while not (process.log.exists() and text in process.log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(1)
        time.sleep(0.01)


def struck(group, victim, signum):
    """Sends the signal to one of the processes and waits for all. Returns exit codes, outputs and seconds."""
    assert [process.poll() for process in group] == [None] * len(group), "over before it was struck"
    group[victim].send_signal(signum)
    since = time.monotonic()
    codes, outs = ended(group)
    took = time.monotonic() - since
    print(f"{signal.Signals(signum).name} to {victim} of {len(group)}: {codes} after {took:.1f} s")
    return codes, outs, took


def strike(group, victim, signum):
    """As `struck`, of a run that trains: checks that all end in time, and if told to, with one step saved on all."""
    codes, outs, took = struck(group, victim, signum)
    assert took < HEARTBEAT + SLACK
    if signum == signal.SIGKILL:
        assert codes.pop(victim) == -signum
        assert not {0, 2, 3, 143} & set(codes), "the launcher starts it again"
    else:
        assert codes == [143] * len(group), outs
        assert len(saved(outs)) == 1


class Broken:
    """A run of so many processes that is struck again and again, until `check` lets it end."""

    def __init__(self, count, folder):
        self.count, self.folder = count, folder

    def start(self, name="broken", steps=100_000):
        where = ["--workdir", str(self.folder / name), f"--config.train.steps={steps}", "--config.train.batch_size=12"]
        return processes(self.count, "gaussians8", *RUN, *where)

    def rows(self, name="broken"):
        return metrics(self.folder / name) if (self.folder / name / "metrics.csv").exists() else []

    def strike(self, victim, signum, after):
        """Strikes it so many steps after where it goes on; with None, as soon as it says that it does."""
        at = int(self.rows()[-1]["step"]) if self.rows() else 0
        group = self.start()
        if after is None:
            in_log(group[0], "resuming from step")
        else:
            wait_for(group, self.folder / "broken", at + after)
        strike(group, victim, signum)

    def check(self):
        """Lets it go on to its end, and another to the same without a break: they do not differ in a bit."""
        last = int(self.rows()[-1]["step"]) + 20
        for name in ("broken", "whole"):
            assert ended(self.start(name, last))[0] == [0] * self.count
        equal(self.folder / "broken", self.folder / "whole")
        for name in ("broken", "whole"):  # rows do not repeat, and none is missing
            assert [int(row["step"]) for row in self.rows(name)] == list(range(5, last + 1, 5))


KILLS = int(os.environ.get("SINTROVAE_JAX_KILLS", "2"))


@pytest.mark.soak
def test_of_three_processes_one_is_told_or_killed_and_nothing_is_lost(tmp_path, rng):
    """More kills by SINTROVAE_JAX_KILLS.

    The last is a notice before the first step of a resumed run: jax's own numbers begin at 0, and those of such a run's
    steps do not.
    """
    broken = Broken(3, tmp_path)
    signals = (signal.SIGINT, signal.SIGKILL, signal.SIGTERM)  # the first one saves what the last one resumes
    for signum in itertools.islice(itertools.cycle(signals), KILLS):
        broken.strike(rng.randrange(3), signum, rng.randrange(1, 30))
    broken.strike(1, signal.SIGTERM, after=None)
    broken.check()


EVALUATED = [*RUN, "--config.eval.every=20", "--config.checkpoint.every=1000", "--config.train.steps=100"]


@pytest.mark.soak
def test_a_notice_during_an_evaluation_ends_it_and_saves(tmp_path):
    """One that would take hours, on process 0; the other waits for it."""
    args = [*EVALUATED, "--config.eval.evaluators=likelihood", "--config.eval.likelihood.num_scored=1000000"]
    args += ["--config.checkpoint.best=elbo", "--config.eval.batch_size=8"]
    group = processes(2, "gaussians8", "--workdir", str(tmp_path / "run"), *args)
    wait_for(group, tmp_path / "run", 20)
    time.sleep(2)
    codes, outs, took = struck(group, 1, signal.SIGTERM)
    assert codes == [143, 143], outs
    assert took < SLACK
    is_saved_before(tmp_path / "run", *outs)


def is_saved_before(workdir, *outs):
    assert saved(outs) == {20} == {int(final_state(workdir).step)}
    assert "is abandoned" in outs[0]


def test_a_notice_during_an_evaluation_ends_it_on_a_process_alone(tmp_path, monkeypatch):
    def evaluate(scoring):
        signal.raise_signal(signal.SIGTERM)
        since = time.monotonic()
        while time.monotonic() < since + SLACK:
            cancellation.check()
        raise AssertionError("it was not abandoned")

    monkeypatch.setitem(evaluators.EVALUATORS, "endless", Evaluator(evaluate, lambda config: ()))
    out = run("gaussians8", tmp_path / "run", *EVALUATED, "--config.eval.evaluators=endless", code=143)
    is_saved_before(tmp_path / "run", out)


def test_a_hung_process_takes_the_others_down_in_time(tmp_path):
    """As a machine does that is gone without a word; a killed process at least closes its connections."""
    args = ["--workdir", str(tmp_path / "run"), *RUN, "--config.train.steps=100000"]
    group = processes(2, "gaussians8", *args)
    wait_for(group, tmp_path / "run", 20)
    assert "is in use: " in run("gaussians8", tmp_path / "run", *RUN, code=2), "both have one owner"
    group[1].send_signal(signal.SIGSTOP)
    since = time.monotonic()
    try:
        codes, outs = ended(group[:1])
    finally:
        group[1].send_signal(signal.SIGKILL)  # or it would keep the tests from ending
    took = time.monotonic() - since
    print(f"exit code {codes} after {took:.1f} s")
    assert codes[0] not in (0, 2, 3, 143), outs
    assert took < HEARTBEAT + SLACK


def pictures(folder, count):
    folder.mkdir()
    for i in range(count):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"{i}.png")


def test_an_error_in_one_process_ends_the_other(tmp_path):
    """Its pictures vanish while it trains; and it had fewer from the start."""
    for name, count in (("a", 40), ("b", 40), ("fewer", 39)):
        pictures(tmp_path / name, count)
    args = [*RUN, "--config.train.steps=100000", "--config.data.image_size=8", "--config.data.memory_gib=1e-9"]
    args += ["--config.model.family=mlp", "--config.train.batch_size=8"]

    def reading(name, *folders):
        each = [[f"--config.data.source=folder:{tmp_path / folder}"] for folder in folders]
        return processes(2, "digits", "--workdir", str(tmp_path / name), *args, each=each)

    codes, outs = ended(reading("differ", "a", "fewer"))
    assert codes == [1, 1]
    assert all("the examples differ between the processes" in out for out in outs), outs
    group = reading("vanish", "a", "b")
    wait_for(group, tmp_path / "vanish", 20)
    shutil.rmtree(tmp_path / "b")
    since = time.monotonic()
    codes, outs = ended(group)
    assert codes[1] == 74, outs
    assert codes[0] not in (0, 2, 3, 143), outs
    assert outs[1].strip().splitlines()[-1].startswith("error: the pictures are no longer there: ")
    assert time.monotonic() - since < HEARTBEAT + SLACK


@pytest.mark.soak
def test_a_run_goes_on_with_other_processes_and_devices(tmp_path):
    """Written by 2 processes of 2 devices; resumed by 1 of 1, 1 of 4, 2 of 1; as one device that was not stopped."""
    args = [*TINY, QUICK, "--config.objective.num_vae=0", "--config.train.substeps=1", "--config.log.every=1"]

    def trained(name, steps, count, devices):
        some = [*args, f"--config.train.steps={steps}"]
        if count == 1:
            run("gaussians8", tmp_path / name, *some, devices=devices)
            return
        group = processes(count, "gaussians8", "--workdir", str(tmp_path / name), *some, devices=devices)
        assert ended(group)[0] == [0] * count

    trained("whole", 30, 1, 1)
    trained("half", 15, 2, 2)
    wanted = metrics(tmp_path / "whole")
    assert len(wanted) == 30
    for count, devices in ((1, 1), (1, 4), (2, 1)):
        name = f"{count} of {devices}"
        shutil.copytree(tmp_path / "half", tmp_path / name)
        trained(name, 30, count, devices)
        same_terms(metrics(tmp_path / name), wanted, name)


@pytest.mark.soak
def test_a_run_in_a_bucket_is_killed_and_goes_on(bucket, tmp_path):
    """Two processes; the newest checkpoint is damaged besides, and set aside."""
    args = [*RUN, "--config.log.figures=True", "--config.train.steps=80", "--config.checkpoint.keep=3"]
    options = bucket | {"without": "clu.metric_writers"}  # they would ask TensorFlow
    here, there = ["--workdir", str(tmp_path / "run")], ["--workdir", "gs://bucket/run"]
    assert ended(processes(2, "gaussians8", *here, *args))[0] == [0, 0]
    group = processes(2, "gaussians8", *there, *args, **options)
    in_log(group[0], "step 65/")  # a save waits for the one before it: those of 20 and 40 are done
    strike(group, 1, signal.SIGKILL)
    objects = listing(bucket)
    found = (re.fullmatch(r"run/checkpoints/(\d+)/commit\S*", name) for name in objects)
    newest = max(int(match.group(1)) for match in found if match)
    assert 40 <= newest < 80
    for name in objects:
        if name.startswith(f"run/checkpoints/{newest}/networks/manifest"):
            ask(bucket, f"/storage/v1/b/bucket/o/{urllib.parse.quote(name, safe='')}", method="DELETE")
    codes, outs = ended(processes(2, "gaussians8", *there, *args, **options))
    assert codes == [0, 0], outs
    assert f"checkpoint {newest} is damaged" in outs[0]
    objects = listing(bucket)
    assert any(name.startswith(f"run/damaged/{newest}/training/") for name in objects)
    wanted = {"run/config.json", "run/metrics.csv", "run/results.json", "run/figures/samples.png"}
    assert wanted <= set(objects)
    assert "run/owner.json" not in objects
    for name in objects:
        if name.startswith(("run/config.json", "run/metrics.csv", "run/checkpoints/80/")):
            path = tmp_path / "copy" / name.removeprefix("run/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(ask(bucket, f"/download/storage/v1/b/bucket/o/{urllib.parse.quote(name, safe='')}"))
    equal(tmp_path / "run", tmp_path / "copy")
    steps = [[row["step"] for row in metrics(tmp_path / name)] for name in ("run", "copy")]
    assert steps[0] == steps[1], "rows repeat or are missing"


def listing(bucket) -> list[str]:
    return [item["name"] for item in json.loads(ask(bucket, "/storage/v1/b/bucket/o")).get("items", [])]


def ask(bucket, path, method="GET") -> bytes:
    request = urllib.request.Request(bucket["STORAGE_EMULATOR_HOST"] + path, method=method)
    with urllib.request.urlopen(request) as answer:
        return answer.read()
