"""Who trains in a workdir: one run at a time, here and on other hosts, also after one has died."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import TINY, run, start
from etils.epath import gpath
from test_faults import no_file_larger_than
from test_train import metrics, wait_for

from sintrovae_jax import files, ownership, workdirs
from sintrovae_jax.errors import Unavailable, UserError
from sintrovae_jax.ownership import Owner, owned

STALE = 1.0  # seconds


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, seconds in (("_BEAT", STALE / 4), ("_STALE", STALE), ("_POLL", 0.02)):
        monkeypatch.setattr(ownership, name, seconds)


def record(workdir: Path, **fields) -> Path:
    """An owner.json that says this process, but for these fields."""
    path = workdir / workdirs.OWNER
    files.write_text(path, json.dumps(ownership._me()._asdict() | fields))
    return path


def elsewhere(workdir: Path) -> Path:
    """Process 7 of another machine, which shows that it lives."""
    return record(workdir, host="elsewhere", machine="another", pid="7", beat=uuid.uuid4().hex)


def holder(workdir: Path) -> dict:
    return json.loads((workdir / workdirs.OWNER).read_text())


def test_while_it_is_owned_it_says_by_whom_and_nothing_stays(tmp_path):
    workdir = tmp_path / "run"
    with owned(workdir) as check:
        check()
        says = holder(workdir)
        assert (says["host"], says["pid"]) == (socket.gethostname(), str(os.getpid()))
    assert not workdir.exists(), "nothing was written into it"
    with owned(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_in_a_line_that_names_the_first(tmp_path):
    with owned(tmp_path):
        since = holder(tmp_path)["since"]
        with pytest.raises(UserError) as caught, owned(tmp_path):
            pass
        assert holder(tmp_path)["pid"] == str(os.getpid())
    assert str(caught.value) == (
        f"{tmp_path} is in use: {socket.gethostname()}, process {os.getpid()}, since {since}; "
        "stop that run, or use another --workdir"
    )


def test_a_run_that_was_killed_loses_its_workdir_at_once(tmp_path):
    """Also as long as its parent has not asked how it ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record(tmp_path, pid=str(process.pid), started=ownership._started(process.pid))
    with pytest.raises(UserError, match=f"process {process.pid}, since"):
        Owner(tmp_path)
    process.kill()
    for ended in (lambda: os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT), process.wait):
        ended()
        with owned(tmp_path) as check:
            check()
        record(tmp_path, pid=str(process.pid), started="1")


def test_another_process_with_the_number_of_one_that_is_gone_is_not_taken_for_it(tmp_path):
    record(tmp_path, started=str(int(ownership._started(os.getpid())) - 1))
    began = time.monotonic()
    with owned(tmp_path):
        assert time.monotonic() - began < STALE


@pytest.mark.parametrize("content", [None, "no json"])
def test_an_owner_elsewhere_that_shows_no_sign_of_life_is_replaced_in_time(tmp_path, content):
    path = elsewhere(tmp_path)
    if content:
        path.write_text(content)
    began = time.monotonic()
    with owned(tmp_path) as check:
        assert time.monotonic() - began >= STALE
        check()


def every(seconds: float, act, times: int) -> threading.Thread:
    def go():
        for _ in range(times):
            time.sleep(seconds)
            act()

    thread = threading.Thread(target=go)
    thread.start()
    return thread


def test_an_owner_elsewhere_that_lives_is_waited_for_a_little_and_refused(tmp_path):
    elsewhere(tmp_path)
    began = time.monotonic()
    living = every(STALE / 10, lambda: elsewhere(tmp_path), times=20)
    with pytest.raises(UserError, match="is in use: elsewhere, process 7, since"):
        Owner(tmp_path)
    assert STALE <= time.monotonic() - began < 2 * STALE
    living.join()
    assert holder(tmp_path)["host"] == "elsewhere"


def test_an_owner_elsewhere_that_is_about_to_end_is_waited_for(tmp_path):
    """As a job is that was told to stop, and saves, when it is started again on another host."""
    path = elsewhere(tmp_path)
    ending = every(STALE / 4, path.unlink, times=1)
    began = time.monotonic()
    with owned(tmp_path):
        assert time.monotonic() - began < STALE
    ending.join()


def test_an_owner_that_dies_after_a_sign_of_life_is_replaced(tmp_path):
    elsewhere(tmp_path)
    dying = every(STALE / 5, lambda: elsewhere(tmp_path), times=1)
    with owned(tmp_path) as check:
        check()
    dying.join()


def test_an_owner_shows_signs_of_life(tmp_path):
    with owned(tmp_path):
        seen = set()
        deadline = time.monotonic() + 20 * STALE
        while len(seen) < 4 and time.monotonic() < deadline:
            seen.add((tmp_path / workdirs.OWNER).read_text())
            time.sleep(STALE / 50)
        assert len(seen) == 4


def test_one_that_was_taken_over_writes_nothing_more(tmp_path):
    """It hung, or was cut off, long enough; then it goes on."""
    with owned(tmp_path) as check:
        elsewhere(tmp_path)
        with pytest.raises(UserError, match=r"has another owner now.*: elsewhere, process 7"):
            check()
    assert holder(tmp_path)["host"] == "elsewhere", "it is not for the old one to remove"


def test_a_record_that_somebody_removed_is_written_again(tmp_path):
    with owned(tmp_path) as check:
        (tmp_path / workdirs.OWNER).unlink()
        check()
        deadline = time.monotonic() + 20 * STALE
        while not (tmp_path / workdirs.OWNER).exists() and time.monotonic() < deadline:
            time.sleep(STALE / 50)
        assert holder(tmp_path)["pid"] == str(os.getpid())


def test_where_there_is_no_room_nothing_stays(tmp_path):
    with no_file_larger_than(0), pytest.raises(Unavailable, match=r"cannot write .*: File too large"):
        Owner(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_of_many_at_once_one_is_the_owner(tmp_path):
    """The others are refused at once, or before they write."""

    def attempt(_):
        with contextlib.suppress(UserError):
            return Owner(tmp_path)

    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            owners = list(filter(None, pool.map(attempt, range(8))))
        passed = 0
        for owner in owners:
            with contextlib.suppress(UserError):
                owner.check()
                passed += 1
        assert passed == 1
        for owner in owners:
            owner.release()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
def test_in_a_bucket(bucket, monkeypatch):
    """Where nothing can be kept from others, and each sign of life is another object."""
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    # etils reads EPATH_USE_TF once in a process.
    monkeypatch.setattr(gpath, "_is_tf_installed", functools.lru_cache(gpath._is_tf_installed.__wrapped__))
    workdir = files.place("gs://bucket/run")
    path = workdir / workdirs.OWNER
    with owned(workdir) as check:
        check()
        assert json.loads(path.read_text())["pid"] == str(os.getpid())
        with pytest.raises(UserError, match=f"is in use: {socket.gethostname()}, process {os.getpid()}"):
            Owner(workdir)
        seen = path.read_text()
        deadline = time.monotonic() + 20 * STALE
        while path.read_text() == seen:
            assert time.monotonic() < deadline
        with pytest.raises(UserError, match=r"has another owner now.*: elsewhere"):
            while time.monotonic() < deadline:
                elsewhere(workdir)  # a sign of life that is being written may replace it
                check()
    elsewhere(workdir)
    began = time.monotonic()
    with owned(workdir):
        assert time.monotonic() - began >= STALE
    assert not path.exists()


@pytest.mark.soak
def test_two_commands_on_one_workdir(tmp_path):
    """The second is refused, and the first does not notice; when it is killed, the next goes on at once."""
    args = [*TINY, "--config.objective.name=vae"]
    first = start("gaussians8", tmp_path, *args, "--config.train.steps=100000")
    wait_for([first], tmp_path, 20)
    out = run("gaussians8", tmp_path, *args, code=2)
    assert out.startswith(f"error: {tmp_path} is in use: {socket.gethostname()}, process ")
    assert len(out.strip().splitlines()) == 1
    reached = int(metrics(tmp_path)[-1]["step"])
    wait_for([first], tmp_path, max(45, reached + 5))  # the save at 40 waits for that of 20
    first.send_signal(signal.SIGKILL)
    first.communicate()
    last = 5 + int(metrics(tmp_path)[-1]["step"])
    assert "resuming from step" in run("gaussians8", tmp_path, *args, f"--config.train.steps={last}")
    assert [int(row["step"]) for row in metrics(tmp_path)] == list(range(5, last + 1, 5))
    assert not (tmp_path / workdirs.OWNER).exists()
