"""Pictures in a folder, local or remote (gs://…), of any size, mode and kind that `images` reads."""

import functools
import hashlib
import itertools
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from sintrovae_jax.data import images
from sintrovae_jax.data.identity import Identity, Mark, of_file
from sintrovae_jax.data.images import Format
from sintrovae_jax.data.readers import Readers, cores
from sintrovae_jax.data.source import Images
from sintrovae_jax.data.sources import (
    AT_ONCE,
    Arrays,
    Pyramid,
    as_float,
    chosen,
    decoded,
    dispatches,
    labelled,
    shrink,
)
from sintrovae_jax.errors import UserError
from sintrovae_jax.files import is_remote
from sintrovae_jax.parallel import Shard

Read = Callable[[list[str], np.ndarray], dict[int, str]]  # (names, array to fill) -> {index: error}
log = logging.getLogger(__name__)
_NAMED = 20  # damaged files that the warning names; results.json has them all
_REMOTE_THREADS = 64  # reading remote files is mostly waiting


def build(path: str, form: Format, test_fraction: float, memory_bytes: float) -> Images:
    """The source of a folder's pictures: in memory if they fit, otherwise read during training.

    Damaged and incomplete files are skipped, counted and named. In memory every file is decoded first, so that all of
    them are known. Otherwise only the beginning of every file is checked first, and a file that turns out to be damaged
    later is replaced by the next readable one. Raises `UserError` if there is no folder or no readable picture in it.
    """
    names = listing(path)
    threads = _REMOTE_THREADS if is_remote(path) else cores()
    in_memory = len(names) * np.prod(form.shape) <= memory_bytes
    log.info("%s %d pictures in %s", "reading" if in_memory else "looking through", len(names), path)

    marks: dict[str, Mark] = {}

    def read(name):
        content = _read(path, name)
        marks[name] = of_file(content) if in_memory else [len(content)]
        return content

    def load(name):
        return images.decode(read(name), form)

    def sound(part):
        """Whether one of these can be decoded. Skips those before it, which cannot."""
        for name in part:
            _, problem = _try(load, name)
            if problem is None:
                return True
            skipped[name] = problem
            del found[name]
        return False

    look = load if in_memory else lambda name: images.check(read(name))
    found, skipped = _try_all(look, names, threads)
    train, test = split(list(found), test_fraction)
    while not in_memory and found and not (sound(train) and sound(test)):
        train, test = split(list(found), test_fraction)
    if not found:
        name, reason = next(iter(skipped.items()))
        raise UserError(f"not one of {len(names)} files in {path} can be read as a picture: {name}: {reason}")
    if skipped:
        listed = ", ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:_NAMED])
        more = f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
        log.warning("skipped %d damaged files of %d: %s%s", len(skipped), len(names), listed, more)
    identity = Identity("files", marks)
    if in_memory:
        x, x_test = (np.stack([found[name] for name in part]) for part in (train, test))
        return Arrays(x, x_test, skipped, identity=identity)
    path = path if is_remote(path) else os.path.abspath(path)  # independent of the working directory
    look = functools.partial(_size_and_time, path)
    read_all, at_once = _by_threads(load) if is_remote(path) else _by_processes(path, form)
    return Files(read_all, train, test, form, skipped, at_once, look, memory_bytes, identity)


def by_class(path: str, form: Format, test_fraction: float) -> Arrays:
    """The source, in memory, of a folder with a folder of pictures for every class, such as KTH's frames of an actor.

    The last `test_fraction` of every class, in the order of the names, is held out: one stretch, so that training sees
    a neighbour of its first frame alone. So, unlike with `split`, more pictures change what is held out.
    Raises `UserError` if pictures lie outside of such folders, a class has fewer than two, or one is damaged.
    """
    if not tf.io.gfile.isdir(path):
        raise UserError(f"data.source=kth:{path} is no folder")
    names = listing(path)
    outside = next((name for name in names if os.sep not in name), None)
    if outside:
        raise UserError(f"{path} must have a folder for every class (of KTH, every actor): {outside} lies in none")

    marks: dict[str, Mark] = {}

    def load(name):
        content = _read(path, name)
        marks[name] = of_file(content)
        return images.decode(content, form)

    found, skipped = _try_all(load, names, cores())
    if skipped:
        name, reason = next(iter(skipped.items()))
        raise UserError(
            f"{path}: {len(skipped)} of {len(names)} pictures cannot be read, the first is {name}: {reason}"
        )
    folders = np.array([name.split(os.sep)[0] for name in names])
    known, classes = np.unique(folders, return_inverse=True)
    test = np.zeros(len(names), bool)
    for number, folder in enumerate(known):
        mine = np.flatnonzero(classes == number)
        if len(mine) < 2:
            raise UserError(f"{path}/{folder} has one picture alone: there is none to hold out")
        test[mine[-max(1, round(test_fraction * len(mine))) :]] = True
    x = np.stack([found[name] for name in names])
    return labelled(x, test, classes, identity=Identity("files", marks))


def listing(path: str) -> list[str]:
    """The names of all pictures below a folder, relative to it, sorted. Follows links to folders, but never in a loop.

    Raises `UserError` if it is no folder or has none.
    """
    if not tf.io.gfile.isdir(path):
        raise UserError(f"data.source=folder:{path} is no folder")
    files = _walk_remote(path) if is_remote(path) else _walk(path)
    names = sorted(name for name in files if name.lower().endswith(images.SUFFIXES))
    if not names:
        raise UserError(f"{path} has no pictures ({', '.join(images.SUFFIXES)}) in it or below")
    return names


def _walk(path: str) -> Iterable[str]:
    seen = set()
    for folder, below, files in os.walk(path, followlinks=True):
        place = os.stat(folder)
        if (place.st_dev, place.st_ino) in seen:  # a link back to a folder above
            below.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        below.sort()
        yield from (os.path.relpath(os.path.join(folder, file), path) for file in files)


def _walk_remote(path: str) -> Iterable[str]:
    for folder, _, files in tf.io.gfile.walk(path):
        yield from (os.path.join(folder, file).removeprefix(path).lstrip("/") for file in files)


def _read(path: str, name: str) -> bytes:
    place = os.path.join(path, name)
    if is_remote(path):
        with tf.io.gfile.GFile(place, "rb") as file:
            return file.read()
    with open(place, "rb") as file:
        return file.read()


def _size_and_time(path: str, name: str) -> tuple[int, int]:
    place = os.path.join(path, name)
    if is_remote(path):
        status = tf.io.gfile.stat(place)
        return status.length, status.mtime_nsec
    status = os.stat(place)
    return status.st_size, status.st_mtime_ns


def _try(function: Callable[[str], Any], name: str) -> tuple[Any, str | None]:
    """(result, None), or (None, why it failed)."""
    try:
        return function(name), None
    except (ValueError, OSError, tf.errors.OpError) as error:
        return None, " ".join(str(error).split())


def _try_all(function: Callable[[str], Any], names: list[str], threads: int) -> tuple[dict[str, Any], dict[str, str]]:
    """{name: result} and {name: why it failed}, both in the order of `names`."""
    # Threads suffice for a single pass: pictures are decoded and resized without holding the GIL.
    with ThreadPoolExecutor(threads) as pool:
        results = dict(zip(names, pool.map(functools.partial(_try, function), names), strict=True))
    found = {name: result for name, (result, problem) in results.items() if problem is None}
    return found, {name: problem for name, (_, problem) in results.items() if problem is not None}


def _by_processes(path: str, form: Format) -> tuple[Read, int]:
    """A function (names, array to fill) -> {index: error}, and the number of pictures that it reads at once."""
    readers = Readers(form)
    return lambda names, x: readers.read([os.path.join(path, name) for name in names], x), readers.count


def _by_threads(load: Callable[[str], np.ndarray]) -> tuple[Read, int]:
    """The same with threads, for files that are mostly waited for."""
    pool = ThreadPoolExecutor(_REMOTE_THREADS)

    def read(names, x):
        wrong = {}
        for i, (result, problem) in enumerate(pool.map(functools.partial(_try, load), names)):
            if problem is None:
                x[i] = result
            else:
                wrong[i] = problem
        return wrong

    return read, _REMOTE_THREADS


def split(names: list[str], test_fraction: float) -> tuple[list[str], list[str]]:
    """Names for training and names for testing. A name's part depends on the name alone.

    Neither part is empty, however: the name with the lowest hash is always held out, and a single name is in both.
    """
    place = {name: zlib.crc32(name.encode("utf-8", "surrogateescape")) / 2**32 for name in names}
    if len(names) <= 1:
        return names, names
    first = min(names, key=place.__getitem__)
    test = [name for name in names if place[name] < test_fraction or name == first]
    kept = set(test)
    train = [name for name in names if name not in kept]
    return (train, test) if train else (test[1:], test[:1])


class Files:
    """Pictures decoded during training, in a new seeded order every epoch.

    A damaged one is replaced by the next, so that the order of the others stays the same, also for a resumed run.

    read: (names, array to fill [their count, *form.shape]) -> {index: error}; called by several threads at once.
    at_once: the number of pictures that it reads at once. look: name -> a value that changes with the content.
    """

    labels, factors = None, None

    def __init__(
        self,
        read: Read,
        train: list[str],
        test: list[str],
        form: Format,
        skipped: dict[str, str],
        at_once: int,
        look: Callable[[str], tuple[int, int]],
        memory_bytes: float = 0.0,
        identity: Identity | None = None,
    ):
        self.identity = identity
        self._read, self._look, self._train, self._test, self._form = read, look, train, test, form
        self.at = Pyramid(self, form, len(train) + len(test), memory_bytes, self._arrays).at
        self.skipped, self._lock = skipped, threading.Lock()
        self.count, self._at_once = len(train), at_once

    def stream(self, seed: int, start: int, stop: int, shard: Shard, substeps: int = 1) -> tf.data.Dataset:
        order = dispatches(start, stop, substeps).map(lambda steps: chosen(seed, steps, len(self._train), shard))
        count = substeps * (shard.stop - shard.start)
        return decoded(order, self._replaced, count, self._form.shape, self._at_once)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A text that changes with the names, sizes and times of the files, the split and the format."""
        files = [_try_all(self._look, names, self._at_once)[0] for names in (self._train, self._test)]
        return hashlib.sha256(repr((files, self._form)).encode("utf-8", "surrogateescape")).hexdigest()

    def train(self, size: int) -> Iterator[np.ndarray]:
        order = np.random.default_rng(0).permutation(len(self._train))
        return self._pieces([self._train[i] for i in order], size)

    def test(self, n: int, seed: int) -> np.ndarray:
        del seed  # always the same first n
        names, found = iter(self._test), list[np.ndarray]()
        while (missing := n - sum(map(len, found))) and (part := list(itertools.islice(names, missing))):
            found.append(self._sound(part))
        if not sum(map(len, found)):
            raise UserError("none of the test pictures can be read")
        return as_float(np.concatenate(found))

    def _arrays(self, size: int) -> Arrays:
        parts = []
        for names in (self._train, self._test):
            pieces = [shrink(x, size) for x in self._pieces(names, AT_ONCE)]
            if not pieces:
                raise UserError("not one picture can be read any more")
            parts.append(np.concatenate(pieces))
        train, test = parts
        return Arrays(train, test, self.skipped)

    def _pieces(self, names: list[str], size: int) -> Iterator[np.ndarray]:
        """The readable pictures of these names, in arrays of at most `size`."""
        for start in range(0, len(names), size):
            x = self._sound(names[start : start + size])
            if len(x):
                yield x

    def _sound(self, names: list[str]) -> np.ndarray:
        """The readable pictures of these names. The others are recorded as skipped."""
        x = np.empty((len(names), *self._form.shape), np.uint8)
        bad = self._skip(names, self._read(names, x))
        return np.delete(x, bad, axis=0) if bad else x

    def _replaced(self, indices: np.ndarray, x: np.ndarray) -> None:
        """Reads the training pictures of these indices into x. A damaged one is replaced by the next."""
        names = [self._train[i] for i in indices]
        for place in self._skip(names, self._read(names, x)):
            x[place] = self._next(indices[place])

    def _next(self, index: int) -> np.ndarray:
        """The first readable training picture after this one."""
        for i in range(1, len(self._train)):
            found = self._sound([self._train[(index + i) % len(self._train)]])
            if len(found):
                return found[0]
        raise UserError("not one picture can be read any more")

    def _skip(self, names: list[str], wrong: dict[int, str]) -> list[int]:
        """Records the names with an error as skipped. Returns their indices."""
        with self._lock:
            new = {names[i]: why for i, why in wrong.items() if names[i] not in self.skipped}
            self.skipped |= new
        for name, reason in new.items():
            log.warning("skipped a damaged file: %s (%s)", name, reason)
        return list(wrong)
