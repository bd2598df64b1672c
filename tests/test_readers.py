"""Processes that read pictures: what they read, and how they end."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from forks import ROOT
from PIL import Image

from sintrovae_jax.data import images, readers
from sintrovae_jax.data.images import Format
from sintrovae_jax.data.readers import Readers

FORM = Format(8, 3)


def encoded(number: int, size: int = 12) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wanted(count: int) -> np.ndarray:
    return np.stack([images.decode(encoded(i), FORM) for i in range(count)])


def nothing(count: int) -> np.ndarray:
    return np.zeros((count, *FORM.shape), np.uint8)


def running(reader) -> list[int]:
    """The processes of a `Readers` with nothing to do, the next one to be taken first.

    They are as many as were needed: the first may have read its part before another is looked for.
    """
    idle = [reader._idle.get_nowait() for _ in range(reader.count)]
    for one in reversed(idle):
        reader._idle.put(one)
    return [one._process.pid for one in idle if one]


def ends(pid: int, waited_for: bool = False) -> bool:
    """Whether a process soon ends, and whether its parent, if that is asked, takes note."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] == "Z" and not waited_for:
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def reader():
    return Readers(FORM, 2)


@pytest.fixture(scope="module")
def two_at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_SHARED_BYTES", 2 * 8 * 8 * 3 + 5)
        return Readers(FORM, 2)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_pictures_by_path_and_from_bytes_are_what_pillow_reads_here(tmp_path, count, two_at_once):
    items = [encoded(i) for i in range(count)]
    for i in range(0, count, 2):
        place = tmp_path / f"{i} \N{SNOWMAN}\n.png"
        place.write_bytes(items[i])
        items[i] = str(place)
    x = nothing(count)
    assert two_at_once.read(items, x) == {}
    np.testing.assert_array_equal(x, wanted(count) if count else x)


def test_what_cannot_be_read_is_named_by_its_place_and_hurts_no_other(reader, tmp_path):
    items = [encoded(0), b"no picture", encoded(2), encoded(3)[:-60], str(tmp_path / "none.png"), encoded(5), b""]
    x = nothing(len(items))
    wrong = reader.read(items, x)
    assert sorted(wrong) == [1, 3, 4, 6]
    assert wrong[1] == "not a picture"
    assert "none.png" in wrong[4]
    assert all(wrong.values())
    np.testing.assert_array_equal(x[[0, 2, 5]], wanted(6)[[0, 2, 5]])


def test_one_that_is_killed_is_replaced_and_nothing_is_lost(reader):
    assert reader.read([encoded(i) for i in range(6)], nothing(6)) == {}
    first, *others = running(reader)
    os.kill(first, signal.SIGKILL)
    x = nothing(6)
    assert reader.read([encoded(i) for i in range(6)], x) == {}
    np.testing.assert_array_equal(x, wanted(6))
    assert set(others) <= set(running(reader))
    assert first not in running(reader)


class Deadly:
    """An item that ends the process that looks at it."""

    def __reduce__(self):
        return os._exit, (7,)


def test_a_picture_that_ends_the_process_that_reads_it_is_damaged(reader):
    items, x = [encoded(i) for i in range(6)], nothing(6)
    items[2] = Deadly()
    assert reader.read(items, x) == {2: "the process that read it ended with 7"}
    sound = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(x[sound], wanted(6)[sound])
    assert reader.read([encoded(0)], x[:1]) == {}


class Endless:
    """An item that takes more time than is allowed, for the process that looks at it."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGXCPU,)


def test_a_picture_that_takes_too_long_is_damaged_and_is_not_tried_again(reader, started):
    items, x = [encoded(0), Endless()], nothing(2)
    assert Readers(FORM, 1).read(items, x) == {1: "decoding it does not end"}
    assert len(started) == 2  # for both, and for one after the other


_LIMITED = """
import sys
import numpy as np
from sintrovae_jax.data import readers
readers._BYTES = readers._SECONDS = 1
form = readers.Format(8, 3, max_pixels=1)
readers._limit_memory(form)
try:
    np.ones(2**28, np.uint8)
except MemoryError:
    print("no memory", flush=True)
readers._limit_time(form)
while True:
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_memory_and_time_of_one_are_limited():
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("no memory\n", -signal.SIGXCPU)


@pytest.mark.parametrize("what", ["beginning", "whole"])
def test_a_look_at_how_pictures_begin(reader, what):
    items = [encoded(0), encoded(1)[:-60], b"none"]
    x = nothing(3) if what == "whole" else None
    assert sorted(reader.read(items, x)) == ([1, 2] if what == "whole" else [2])


def test_a_notice_to_stop_is_not_for_them(reader):
    reader.read([encoded(i) for i in range(2)], nothing(2))
    before = running(reader)
    for pid in before:
        os.kill(pid, signal.SIGTERM)
        assert os.getsid(pid) != os.getsid(0), "Ctrl-C would reach it"
    x = nothing(2)
    assert reader.read([encoded(i) for i in range(2)], x) == {}
    np.testing.assert_array_equal(x, wanted(2))
    assert set(before) <= set(running(reader))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_reaches_one_as_it_starts_loses_nothing(monkeypatch, started, how):
    start = readers._start

    def struck(*handles):
        process = start(*handles)
        if len(started) < 3:
            process.send_signal(how)
        return process

    monkeypatch.setattr(readers, "_start", struck)
    x = nothing(4)
    assert Readers(FORM, 1).read([encoded(i) for i in range(4)], x) == {}
    np.testing.assert_array_equal(x, wanted(4))
    assert len(started) == (1 if how == signal.SIGTERM else 3)


def test_one_is_started_for_as_many_as_are_read_at_once():
    mine = Readers(FORM, 4)
    for i in range(3):
        assert mine.read([encoded(i)], nothing(1)) == {}
    assert len(running(mine)) == 1


def test_they_find_what_they_import_wherever_python_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *(path for path in sys.path if Path(path) != ROOT)])
    monkeypatch.chdir(tmp_path)
    assert Readers(FORM, 1).read([encoded(0)], nothing(1)) == {}


def test_they_end_when_nobody_needs_them():
    mine = Readers(FORM, 2)
    mine.read([encoded(0), encoded(1)], nothing(2))
    pids = running(mine)
    del mine
    assert all(ends(pid, waited_for=True) for pid in pids)


_PARENT = """
import sys, time
from test_readers import FORM, Readers, encoded, nothing, running
r = Readers(FORM, 2)
r.read([encoded(0), encoded(1)], nothing(2))
assert not {"jax", "tensorflow"} & set(sys.modules), "what they import is more than they need"
print(*running(r), flush=True)
time.sleep(60 if sys.argv[1] == "killed" else 0)
"""


@pytest.mark.parametrize("how", ["killed", "done"])
def test_they_end_with_the_process_that_started_them(how):
    command, paths = [sys.executable, "-c", _PARENT, how], os.pathsep.join(sys.path)
    environment, pipe = os.environ | {"PYTHONPATH": paths}, subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        if how == "killed":
            parent.kill()
        assert parent.stderr.read() == ""
    assert pids
    assert all(map(ends, pids))


def test_processes_that_cannot_start_are_an_error_at_once(monkeypatch):
    monkeypatch.setattr(readers.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended at once with 1"):
        Readers(FORM, 2).read([encoded(0)], nothing(1))
