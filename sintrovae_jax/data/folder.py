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

import numpy as np
import tensorflow as tf

from sintrovae_jax.data import images
from sintrovae_jax.data.images import Format
from sintrovae_jax.data.sources import Arrays, Pyramid, as_float, chosen, decoded, labelled, shrink
from sintrovae_jax.errors import UserError
from sintrovae_jax.files import is_remote
from sintrovae_jax.parallel import Shard

log = logging.getLogger(__name__)
_NAMED = 20  # damaged files that the warning names; results.json has them all
_REMOTE_THREADS = 64  # a remote file is mostly waited for


def build(path: str, form: Format, test_fraction: float, memory_bytes: float):
    """The source of a folder's pictures: in memory if they fit, read as training goes if not.

    Files that are no whole picture are skipped, counted and named. In memory every file is decoded first, so all are
    known; if not, the beginning of every file is looked at first, and one that turns out to be damaged later is
    replaced by the next sound one. Raises `UserError` where there is no folder or not one picture in it.
    """
    names = listing(path)
    threads = _REMOTE_THREADS if is_remote(path) else os.cpu_count() or 1
    in_memory = len(names) * np.prod(form.shape) <= memory_bytes
    log.info("%s %d pictures in %s", "reading" if in_memory else "looking through", len(names), path)

    def load(name):
        return images.decode(_read(path, name), form)

    def sound(part):
        """Whether one of these can be read to its end; those that come before it cannot."""
        for name in part:
            _, problem = _try(load, name)
            if problem is None:
                return True
            skipped[name] = problem
            del found[name]
        return False

    look = load if in_memory else lambda name: images.check(_read(path, name))
    found, skipped = _try_all(look, names, threads)
    train, test = split(list(found), test_fraction)
    while not in_memory and found and not (sound(train) and sound(test)):
        train, test = split(list(found), test_fraction)
    if not found:
        name, reason = next(iter(skipped.items()))
        raise UserError(f"not one of {len(names)} files in {path} can be read as a picture: {name}: {reason}")
    if skipped:
        some = ", ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:_NAMED])
        more = f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
        log.warning("skipped %d damaged files of %d: %s%s", len(skipped), len(names), some, more)
    if in_memory:
        return Arrays(*(np.stack([found[name] for name in part]) for part in (train, test)), skipped)
    look = functools.partial(_size_and_time, path)
    return Files(load, train, test, form, skipped, threads, look, memory_bytes)


def by_class(path: str, form: Format, test_fraction: float) -> Arrays:
    """The source, in memory, of a folder that has a folder of pictures for every class, as KTH's frames for an actor.

    Held out is the last `test_fraction` of every class by name, so that no neighbour of a test frame is trained on.
    Raises `UserError` if pictures lie outside of such folders, a class has fewer than two, or one is damaged.
    """
    if not tf.io.gfile.isdir(path):
        raise UserError(f"data.source=kth:{path} is no folder")
    names = listing(path)
    outside = next((name for name in names if os.sep not in name), None)
    if outside:
        raise UserError(f"{path} must have a folder for every class (of KTH, every actor): {outside} lies in none")

    def load(name):
        return images.decode(_read(path, name), form)

    found, skipped = _try_all(load, names, os.cpu_count() or 1)
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
    return labelled(np.stack([found[name] for name in names]), test, classes)


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
        there = tf.io.gfile.stat(place)
        return there.length, there.mtime_nsec
    there = os.stat(place)
    return there.st_size, there.st_mtime_ns


def _try(function: Callable, name: str) -> tuple:
    """(result, None), or (None, why it failed)."""
    try:
        return function(name), None
    except (ValueError, OSError, tf.errors.OpError) as error:
        return None, " ".join(str(error).split())


def _try_all(function: Callable, names: list[str], threads: int) -> tuple[dict, dict]:
    """{name: result} and {name: why it failed}, both in the order of `names`."""
    # Threads serve: Pillow decodes and resizes outside of Python's lock.
    with ThreadPoolExecutor(threads) as pool:
        results = dict(zip(names, pool.map(functools.partial(_try, function), names), strict=True))
    found = {name: result for name, (result, problem) in results.items() if problem is None}
    return found, {name: problem for name, (_, problem) in results.items() if problem is not None}


def split(names: list[str], test_fraction: float) -> tuple[list[str], list[str]]:
    """Names to train and to test with. Where a name goes depends on nothing but the name.

    But neither part is ever empty: the name that comes first by its hash is held out, and one alone serves as both.
    """
    place = {name: zlib.crc32(name.encode("utf-8", "surrogateescape")) / 2**32 for name in names}
    if len(names) <= 1:
        return names, names
    first = min(names, key=place.get)
    test = [name for name in names if place[name] < test_fraction or name == first]
    kept = set(test)
    train = [name for name in names if name not in kept]
    return (train, test) if train else (test[1:], test[:1])


class Files:
    """Pictures decoded as training goes, in a new seeded order every epoch.

    One that fails is replaced by the next, so that the order of the others, and what a resumed run sees, stay the same.
    """

    labels, factors = None, None

    def __init__(
        self,
        load: Callable[[str], np.ndarray],
        train: list[str],
        test: list[str],
        form: Format,
        skipped: dict,
        threads: int,
        look: Callable[[str], tuple],
        memory_bytes: float = 0.0,
    ):
        self._load, self._look, self._train, self._test, self._form = load, look, train, test, form
        self.at = Pyramid(self, form, len(train) + len(test), memory_bytes, self._arrays).at
        self.skipped, self._lock = skipped, threading.Lock()
        self.count, self._threads = len(train), threads

    def stream(self, seed: int, start: int, stop: int, shard: Shard) -> tf.data.Dataset:
        order = tf.data.Dataset.range(start, stop).map(lambda step: chosen(seed, step, len(self._train), shard))
        return decoded(order, self._sound, shard.stop - shard.start, self._form.shape, self._threads)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Another text for other names, sizes or times of files, another split or format."""
        files = [_try_all(self._look, names, self._threads)[0] for names in (self._train, self._test)]
        return hashlib.sha256(repr((files, self._form)).encode("utf-8", "surrogateescape")).hexdigest()

    def train(self, size: int) -> Iterator[np.ndarray]:
        order = np.random.default_rng(0).permutation(len(self._train))
        for start in range(0, len(order), size):
            names = [self._train[i] for i in order[start : start + size]]
            found = self._sound_ones(self._load, names)
            if found:
                yield np.stack(list(found.values()))

    def test(self, n: int, seed: int) -> np.ndarray:
        del seed  # always the same first n
        names, found = iter(self._test), {}
        while len(found) < n and (some := list(itertools.islice(names, n - len(found)))):
            found |= self._sound_ones(self._load, some)
        if not found:
            raise UserError("none of the test pictures can be read")
        return as_float(np.stack(list(found.values())))

    def _arrays(self, size: int) -> Arrays:
        parts = []
        for names in (self._train, self._test):
            found = self._sound_ones(lambda name: shrink(self._load(name), size).numpy(), names)
            if not found:
                raise UserError("not one picture can be read any more")
            parts.append(np.stack(list(found.values())))
        return Arrays(*parts, self.skipped)

    def _sound_ones(self, load: Callable, names: list[str]) -> dict:
        """{name: what `load` makes of it}, without those that fail, which are noted as skipped."""
        found, skipped = _try_all(load, names, self._threads)
        self._skip(skipped)
        return found

    def _sound(self, index: int) -> np.ndarray:
        for i in range(len(self._train)):
            name = self._train[(index + i) % len(self._train)]
            x, problem = _try(self._load, name)
            if problem is None:
                return x
            self._skip({name: problem})
        raise UserError("not one picture can be read any more")

    def _skip(self, skipped: dict) -> None:
        with self._lock:
            new = {name: reason for name, reason in skipped.items() if name not in self.skipped}
            self.skipped |= new
        for name, reason in new.items():
            log.warning("skipped a damaged file: %s (%s)", name, reason)
