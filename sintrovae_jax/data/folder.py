"""Pictures in a folder, local or remote (gs://…), of any size, mode and format that `images` reads."""

import contextlib
import functools
import hashlib
import itertools
import logging
import os
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from sintrovae_jax import progress
from sintrovae_jax.data import images
from sintrovae_jax.data.identity import Identity, Mark
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
from sintrovae_jax.errors import Unavailable, UserError, listed, printable
from sintrovae_jax.files import is_remote
from sintrovae_jax.parallel import Shard, first_line

Read = Callable[[list[str], np.ndarray | None], dict[int, str]]  # (names, array to fill) -> {index: error}
log = logging.getLogger(__name__)
_NAMED = 20  # skipped files that the warning names; results.json has them all
_SAMPLED = 8  # pictures that are looked for before the whole folder counts as gone
_REMOTE_THREADS = 64  # reading remote files is mostly waiting
_CHECKED, _CHECKED_BYTES = 20_000, 2**28  # the most local files, and bytes, that are also compared by content
_A_PART = 4096  # pictures between two checks of the clock
_A_PROCESS = 64  # the number of pictures that is worth starting a process for


def build(path: str, form: Format, test_fraction: float, memory_bytes: float) -> Images:
    """The source of a folder's pictures: in memory if they fit, otherwise read during training.

    In memory, if all pictures are in one folder per class, the classes are known, numbered in the order of the folders'
    names. Pictures that cannot be read are skipped, counted and named. In memory every file is decoded first, so all
    damaged files are found. Otherwise only the beginning of every file is checked first, and a file that turns out to
    be damaged later is replaced by the next readable one. Raises `UserError` if there is no folder or no readable
    picture in it.
    """
    names = listing(path)
    path = path if is_remote(path) else os.path.abspath(path)  # independent of the working directory
    in_memory, classes = len(names) * np.prod(form.shape) <= memory_bytes, classes_of(names)
    log.info("%s %d pictures in %s", "reading" if in_memory else "looking through", len(names), path)
    x = np.empty((len(names), *form.shape), np.uint8) if in_memory else None
    read, at_once = reader(path, form, len(names) if in_memory else 0)
    skipped = {names[i]: why for i, why in _read_all(read, names, x).items()}
    found = {name: i for i, name in enumerate(names) if name not in skipped}

    def sound(part: list[str]) -> bool:
        """Whether any of these can be decoded. Records the undecodable ones before it as skipped."""
        for name in part:
            problem = read([name], np.empty((1, *form.shape), np.uint8))
            if not problem:
                return True
            skipped[name] = problem[0]
            del found[name]
        return False

    train, test = split(list(found), test_fraction)
    while not in_memory and found and not (sound(train) and sound(test)):
        train, test = split(list(found), test_fraction)
    report(path, skipped, len(names), "picture")
    if x is not None:
        places = [[found[name] for name in part] for part in (train, test)]
        x_train, x_test = (x[part] for part in places)
        labels = None if classes is None else (classes[places[0]], classes[places[1]])
        return Arrays(x_train, x_test, skipped, labels, identity=marked(path, names))
    look = functools.partial(_size_and_time, path)
    return Files(read, train, test, form, skipped, at_once, look, memory_bytes, marked(path, names))


def report(path: str, skipped: Mapping[str, str], count: int, what: str) -> None:
    """Warns of the files that cannot be read as `what`. Raises `UserError` if these are all `count` files."""
    if len(skipped) == count:
        name, reason = next(iter(skipped.items()))
        raise UserError(f"not one of {count} files in {path} can be read as a {what}: {name}: {reason}")
    if skipped:
        reasons = listed([f"{name} ({reason})" for name, reason in skipped.items()], _NAMED)
        log.warning("skipped %d of %d %ss: %s", len(skipped), count, what, printable(reasons))


def classes_of(names: list[str]) -> np.ndarray | None:
    """The number [N] of each picture's subfolder; None if a picture is in none, or if all are in the same one."""
    folders = [name.split(os.sep)[0] if os.sep in name else "" for name in names]
    known, classes = np.unique(folders, return_inverse=True)
    return classes if "" not in known and len(known) > 1 else None


def by_class(path: str, form: Format, test_fraction: float) -> Arrays:
    """The source, in memory, of a folder with one subfolder of pictures per class, such as KTH's frames of an actor.

    The last `test_fraction` of every class, in the order of the names, is held out. It is one stretch, so that training
    sees only a neighbour of its first frame. So, unlike with `split`, adding pictures changes what is held out.
    Raises `UserError` if pictures are outside such subfolders, a class has fewer than two, or a picture is damaged.
    """
    if not is_folder(path):
        raise UserError(f"data.source=kth:{path} is no folder")
    names = listing(path)
    log.info("reading %d pictures in %s", len(names), path)
    outside = next((name for name in names if os.sep not in name), None)
    if outside:
        raise UserError(f"{path} must have a folder for every class (of KTH, every actor): {outside} lies in none")
    x = np.empty((len(names), *form.shape), np.uint8)
    skipped = _read_all(reader(path, form, len(names))[0], names, x)
    if skipped:
        first = min(skipped)
        raise UserError(
            f"{path}: {len(skipped)} of {len(names)} pictures cannot be read, the first is {names[first]}: "
            f"{skipped[first]}"
        )
    folders = np.array([name.split(os.sep)[0] for name in names])
    known, classes = np.unique(folders, return_inverse=True)
    test = np.zeros(len(names), bool)
    for number, folder in enumerate(known):
        mine = np.flatnonzero(classes == number)
        if len(mine) < 2:
            raise UserError(f"{path}/{folder} has one picture alone: there is none to hold out")
        test[mine[-max(1, round(test_fraction * len(mine))) :]] = True
    return labelled(x, test, classes, identity=marked(path, names))


def _read_all(read: Read, names: list[str], x: np.ndarray | None) -> dict[int, str]:
    """The result of `read` for all of these, with the progress in the log."""
    wrong: dict[int, str] = {}
    for start in progress.counted(range(0, len(names), _A_PART), "pictures", len(names), each=_A_PART):
        part = slice(start, start + _A_PART)
        wrong |= {start + i: why for i, why in read(names[part], None if x is None else x[part]).items()}
    return wrong


def listing(path: str) -> list[str]:
    """The names of all pictures below a folder, relative to it, sorted. Follows links to folders, but never in a loop.

    Warns of pictures in formats that cannot be read. Raises `UserError` if there is no folder, or no other pictures.
    """
    if not is_folder(path):
        raise UserError(f"data.source=folder:{path} is no folder")
    files = below(path)
    names = sorted(name for name in files if name.lower().endswith(images.SUFFIXES))
    kinds = Counter(kind for name in files if (kind := _unread(path, name)))
    unread = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    if not names:
        others = f"; not read: {unread}" if unread else ""
        raise UserError(f"{path} has no pictures ({', '.join(images.SUFFIXES)}) in it or below{others}")
    if unread:
        log.warning("not read in %s: %s (only %s)", path, unread, ", ".join(images.SUFFIXES))
    return names


def below(path: str) -> list[str]:
    """The names of all files below a folder, relative to it. Follows links to folders, but never in a loop."""
    files = _walk_remote(path) if is_remote(path) else _walk(path)
    return [name for name in files if not os.path.basename(name).startswith("._")]  # macOS's metadata of a file


def _unread(path: str, name: str) -> str:
    """The format of a file that looks like a picture but is not read; '' for other files."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in images.UNREAD:
        return suffix
    if suffix or is_remote(path):  # opening many remote files is slow
        return ""
    place = os.path.join(path, name)
    with contextlib.suppress(OSError):
        if os.path.isfile(place):
            with open(place, "rb") as file:
                return "without a suffix" if images.looks_like_one(file.read(12)) else ""
    return ""


def is_folder(path: str) -> bool:
    """Whether there is a folder, local or remote. TensorFlow refuses local paths that are not UTF-8."""
    return tf.io.gfile.isdir(path) if is_remote(path) else os.path.isdir(path)


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


def _size_and_time(path: str, name: str) -> tuple[int, int]:
    place = os.path.join(path, name)
    if is_remote(path):
        status = tf.io.gfile.stat(place)
        return status.length, status.mtime_nsec
    status = os.stat(place)
    return status.st_size, status.st_mtime_ns


def marked(path: str, names: list[str]) -> Identity:
    """The identity of these files: their sizes, and checksums if they are few and small enough (`_CHECKED`).

    Missing files are left out.
    """

    def size(name: str) -> int | None:
        try:
            return _size_and_time(path, name)[0]
        except (OSError, tf.errors.OpError):
            return None

    with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
        found = list(pool.map(size, names) if is_remote(path) else map(size, names))
    sizes = {name: size for name, size in zip(names, found, strict=True) if size is not None}
    parts: dict[str, Mark] = {name: [size] for name, size in sizes.items()}
    if not is_remote(path) and len(sizes) <= _CHECKED and sum(sizes.values()) <= _CHECKED_BYTES:
        for name, mark in parts.items():
            place = Path(path, name)
            with contextlib.suppress(OSError):
                mark.extend([zlib.crc32(place.read_bytes())] if place.is_file() else [])
    return Identity("files", parts)


def reader(path: str, form: Format, once: int = 0) -> tuple[Read, int]:
    """A function that reads a folder's pictures by name, like `Readers.read`, and the number that it reads at once.

    once: the number of pictures, if they are read only once: for a few pictures, fewer processes are started.
    """
    readers = Readers(form, min(cores(), -(-once // _A_PROCESS)))
    if not is_remote(path):
        return lambda names, x: readers.read([os.path.join(path, name) for name in names], x), readers.count
    pool = ThreadPoolExecutor(_REMOTE_THREADS)

    def read(names: list[str], x: np.ndarray | None) -> dict[int, str]:
        wrong: dict[int, str] = {}
        for start in range(0, len(names), _REMOTE_THREADS):
            part = slice(start, start + _REMOTE_THREADS)
            files = list(pool.map(functools.partial(_fetched, path), names[part]))
            errors = readers.read([file for file, _ in files], None if x is None else x[part])
            wrong |= {start + i: files[i][1] or why for i, why in errors.items()}
        return wrong

    return read, _REMOTE_THREADS


def _fetched(path: str, name: str) -> tuple[bytes, str]:
    """The content of a remote file, and the reason why it cannot be read or ''."""
    try:
        with tf.io.gfile.GFile(os.path.join(path, name), "rb") as file:
            return file.read(), ""
    except (OSError, tf.errors.OpError) as error:
        return b"", " ".join(str(error).split())


def split(names: list[str], test_fraction: float) -> tuple[list[str], list[str]]:
    """Names for training and names for testing. A name's part depends on the name alone.

    But neither part is ever empty: the name with the lowest hash is always held out, and a single name is in both.
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

    A damaged picture is replaced by the next one, so that the order of the others stays the same, also for a resumed
    run.

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
        with ThreadPoolExecutor(self._at_once) as pool:
            files = [dict(filter(None, pool.map(self._looked_at, names))) for names in (self._train, self._test)]
        return hashlib.sha256(repr((files, self._form)).encode("utf-8", "surrogateescape")).hexdigest()

    def _looked_at(self, name: str) -> tuple[str, Any] | None:
        """The name and the result of `look`; None for a missing file."""
        try:
            return name, self._look(name)
        except (OSError, tf.errors.OpError):
            return None

    def train(self, size: int) -> Iterator[np.ndarray]:
        order = np.random.default_rng(0).permutation(len(self._train))
        return self._pieces([self._train[i] for i in order], size)

    def test(self, n: int, seed: int) -> np.ndarray:
        del seed  # always the same first n
        names, found = iter(self._test), list[np.ndarray]()
        while (missing := n - sum(map(len, found))) and (part := list(itertools.islice(names, missing))):
            found.append(self._sound(part))
        if not sum(map(len, found)):
            raise Unavailable("not one test picture can be read any more")
        return as_float(np.concatenate(found))

    def _arrays(self, size: int) -> Arrays:
        parts = []
        for names in (self._train, self._test):
            pieces = [shrink(x, size) for x in self._pieces(names, AT_ONCE)]
            if not pieces:
                raise Unavailable("not one picture can be read any more")
            parts.append(np.concatenate(pieces))
        train, test = parts
        return Arrays(train, test, self.skipped)

    def _pieces(self, names: list[str], size: int) -> Iterator[np.ndarray]:
        """The readable pictures with these names, in arrays of at most `size`."""
        for start in range(0, len(names), size):
            x = self._sound(names[start : start + size])
            if len(x):
                yield x

    def _sound(self, names: list[str]) -> np.ndarray:
        """The readable pictures with these names. The others are recorded as skipped."""
        x = np.empty((len(names), *self._form.shape), np.uint8)
        bad = self._skip(names, self._read(names, x))
        return np.delete(x, bad, axis=0) if bad else x

    def _replaced(self, indices: np.ndarray, x: np.ndarray) -> None:
        """Reads the training pictures with these indices into x. A damaged picture is replaced by the next one."""
        names = [self._train[i] for i in indices]
        for place in self._skip(names, self._read(names, x)):
            x[place] = self._next(indices[place])

    def _next(self, index: int) -> np.ndarray:
        """The first readable training picture after this one."""
        for i in range(1, len(self._train)):
            found = self._sound([self._train[(index + i) % len(self._train)]])
            if len(found):
                return found[0]
        raise Unavailable("not one picture can be read any more")

    def _skip(self, names: list[str], wrong: dict[int, str]) -> list[int]:
        """Records the names with an error as skipped. Returns their indices.

        Raises `Unavailable` if the whole folder is gone, or empty because a disk is no longer mounted.
        """
        if wrong:
            self._find_some()
        with self._lock:
            new = {names[i]: why for i, why in wrong.items() if names[i] not in self.skipped}
            self.skipped |= new
        for name, reason in new.items():
            log.warning("skipped a picture: %s (%s)", printable(name), printable(reason))
        return list(wrong)

    def _find_some(self) -> None:
        """Raises `Unavailable` unless one of a few pictures, from all over the folder, is still there."""
        problem = ""
        for name in self._train[:: -(-len(self._train) // _SAMPLED)]:
            try:
                self._look(name)
            except (OSError, tf.errors.OpError) as error:
                problem = first_line(error)
            else:
                return
        raise Unavailable(f"the pictures are no longer there: {problem}")
