"""Signals and standard streams of a run that loses its terminal, or whose output nobody reads any more."""

import contextlib
import fcntl
import logging
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import QUICK, ROOT, TINY, command, environment, metrics, run
from test_faults import once_at
from test_train import final_state

from sintrovae_jax import streams
from sintrovae_jax.preemption import Stop

RUN = [*TINY, QUICK, "--config.objective.name=vae"]  # what it trains does not matter


@contextlib.contextmanager
def broken_stderr():
    """Within the block, stderr is a pipe that nobody reads."""
    kept = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    for end in (read, write):
        os.close(end)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def hangups(handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_hangup_requests_a_stop_and_the_second_one_changes_nothing():
    """The terminal sends one and its shell another."""
    with hangups(signal.SIG_DFL):
        with Stop().listening() as stop:
            assert stop.asked() == 0
            for _ in range(2):
                signal.raise_signal(signal.SIGHUP)
                assert stop.asked() == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_the_first_signal_names_the_exit_code():
    with hangups(signal.SIG_DFL), Stop().listening() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        assert stop.asked() == signal.SIGTERM


def test_nobody_reads_the_log_any_more():
    with broken_stderr(), hangups(signal.SIG_DFL), Stop().listening() as stop:
        assert stop.asked() == signal.SIGPIPE


def test_under_nohup_no_hangup_stops_a_run():
    with broken_stderr(), hangups(signal.SIG_IGN), Stop().listening() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.asked() == 0


def test_what_gcsfs_warns_of_for_every_file_is_said_once(caplog, monkeypatch):
    logger = logging.getLogger("gcsfs")
    monkeypatch.setattr(logger, "filters", [])
    streams.quiet_libraries()
    for message in ("no layout of one", "no layout of one", "no layout of another", "no layout of one"):
        logger.warning(message)
    assert caplog.messages == ["no layout of one", "no layout of another"]


def test_what_counts_as_unread(tmp_path):
    read, write = os.pipe()
    assert not streams.unread(write)
    os.close(read)
    assert streams.unread(write)
    os.close(write)
    assert not streams.unread(write), "it is closed"
    main, side = pty.openpty()
    os.close(main)
    assert not streams.unread(side), "a terminal that is gone sends SIGHUP"
    os.close(side)
    with (tmp_path / "file").open("w") as file:
        assert not streams.unread(file.fileno())


def python(program: str, redirection: str) -> subprocess.CompletedProcess:
    line = f'"{sys.executable}" -c "$PROGRAM" {redirection}'
    env = os.environ | {"PYTHONPATH": str(ROOT), "PROGRAM": f"from sintrovae_jax import streams\n{program}"}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, env=env)


def test_a_closed_stream_gives_its_number_to_no_file(tmp_path):
    program = f"""
import os, sys
streams.open_closed()
with open({str(tmp_path / "file")!r}, "w") as file:
    assert file.fileno() > 2
    os.write(1, b"a library")
    os.write(2, b"a library")
    print("all", file=sys.stderr)
"""
    done = python(program, "<&- >&- 2>&-")
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_enough_ends_the_program_quietly(lines):
    program = f"""
with streams.printing():
    print("line\\n" * {lines})
"""
    done = python(program, '| head -n 0; echo "code ${PIPESTATUS[0]}"')
    assert (done.stdout, done.stderr) == ("code 141\n", "")
    done = python(f"{program}\nstreams.say('end')\nstreams.flush()", "2>&1 >/dev/null | head -n 0")
    assert done.stderr == ""


def line(workdir: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "sintrovae_jax.main", *command("gaussians8", workdir, *RUN, *args)]


def test_a_run_whose_log_nobody_reads_any_more_saves_and_ends_quietly(tmp_path):
    with contextlib.ExitStack() as stack, once_at(20, tmp_path, lambda: stack.enter_context(broken_stderr())):
        run("gaussians8", tmp_path, *RUN, "--config.train.steps=100000", code=128 + signal.SIGPIPE)
    assert int(final_state(tmp_path).step) >= int(metrics(tmp_path)[-1]["step"])


@pytest.mark.soak
def test_a_run_without_standard_streams_trains(tmp_path):
    without = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", *line(tmp_path, "--config.train.steps=20")]
    assert subprocess.run(without, cwd=ROOT, env=environment(), check=False).returncode == 0
    assert int(final_state(tmp_path).step) == 20
    assert [int(row["step"]) for row in metrics(tmp_path)] == [5, 10, 15, 20]


@pytest.mark.soak
def test_a_run_whose_terminal_is_closed_is_saved(tmp_path):
    """A dropped ssh: the terminal is gone, with the progress bar on it."""
    terminal, side = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    on_terminal = ["setsid", "--ctty", *line(tmp_path, "--config.train.steps=100000")]
    process = subprocess.Popen(on_terminal, cwd=ROOT, env=environment(), stdin=side, stdout=side, stderr=side)
    os.close(side)
    shown = b""
    while b"loss_encoder" not in shown:
        assert select.select([terminal], [], [], 100)[0], shown
        shown += os.read(terminal, 10_000)
    os.close(terminal)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert int(final_state(tmp_path).step) >= int(metrics(tmp_path)[-1]["step"])
