"""Reading NumPy's .npz and .npy files: arrays only, no pickles, and no more memory than is allowed."""

import io
import math
import zipfile
from collections.abc import Callable, Sequence
from typing import IO, BinaryIO, NamedTuple

import numpy as np

ALONE = "x"  # the name that an .npy's array gets
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_WRITTEN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NumPy's ways to compress; others cannot be read piece by piece


class _Stored(NamedTuple):
    """An array in a file. size: its bytes in the file, including the header."""

    open: Callable[[], IO[bytes]]
    size: int


def load(
    file: BinaryIO, choose: Callable[[Sequence[str]], Sequence[str]], check: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, or {'x': the array} of an .npy.

    file: seekable. choose: (names of all arrays) -> names of the arrays to read. check: called with the bytes that
    these take together, before anything is allocated; raises if they are too many. Raises the errors of `check`,
    `choose`, and of numpy, zipfile and zlib for other files.
    """
    stored = _stored(file)
    chosen = {name: stored[name] for name in choose(list(stored))}
    check(sum(_bytes(name, each) for name, each in chosen.items()))
    return {name: _array(each) for name, each in chosen.items()}


def load_npz(data: bytes, most: int = 2**31) -> dict[str, np.ndarray]:
    """All arrays of an .npz's bytes. Raises as `load` does; `ValueError` for an .npy or more than `most` bytes."""

    def check(size: int) -> None:
        if size > most:
            raise ValueError(f"its arrays take {size} bytes")

    if data.startswith(np.lib.format.MAGIC_PREFIX):
        raise ValueError("an array without a name")
    return load(io.BytesIO(data), list, check)


def _stored(file: BinaryIO) -> dict[str, _Stored]:
    size = file.seek(0, io.SEEK_END) or file.tell()  # TensorFlow's files do not return where they are
    file.seek(0)
    if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
        return {ALONE: _Stored(lambda: _again(file), size)}
    archive = zipfile.ZipFile(file)
    members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
    if any(member.compress_type not in _WRITTEN for member in members):
        raise ValueError("it is compressed in a way that NumPy does not write")

    def opener(member: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
        return lambda: archive.open(member)

    return {member.filename.removesuffix(".npy"): _Stored(opener(member), member.file_size) for member in members}


def _again(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _bytes(name: str, stored: _Stored) -> int:
    """The memory that an array takes, according to its header. Raises `ValueError` if the file holds less."""
    file = stored.open()
    shape, _, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > stored.size:
        raise ValueError(f"{name} is said to be {dtype} {shape}, but there are {stored.size} bytes of it")
    return size


def _array(stored: _Stored) -> np.ndarray:
    return np.lib.format.read_array(stored.open(), allow_pickle=False)
