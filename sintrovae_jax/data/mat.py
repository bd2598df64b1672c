"""Reading uint8 arrays from MATLAB files, format 5. scipy reads all kinds of arrays, but crashes on some damaged files.

The format: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_HEADER = 128  # bytes; the last two give the byte order
_INT32, _UINT8, _UINT32, _MATRIX, _COMPRESSED = 5, 2, 6, 14, 15  # kinds of elements
_UINT8_CLASS = 9  # the class of an array
_MOST = 2**28  # the most bytes of a compressed element


class _Element(NamedTuple):
    kind: int
    content: memoryview


def array(data: bytes, name: str) -> np.ndarray | None:
    """The uint8 array with this name in a file; None if there is none.

    Raises `ValueError` for another kind of array with this name; and `ValueError`, `struct.error` or `zlib.error` for
    other files.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[_HEADER - 2 : _HEADER])
    if order is None:
        raise ValueError("not a file of MATLAB's format 5")
    for element in _elements(memoryview(data)[_HEADER:], order):
        inside = element
        if element.kind == _COMPRESSED:
            inside = next(_elements(_decompressed(element.content), order), element)
        if inside.kind == _MATRIX:
            parts = list(_elements(inside.content, order))
            if len(parts) > 3 and bytes(parts[2].content) == name.encode():
                return _decoded(name, order, parts[0], parts[1], parts[3:])
    return None


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """The consecutive elements in these bytes. Raises `ValueError` for a truncated element."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if kind >> 16:  # up to four bytes, within the tag
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + size > len(data):
            raise ValueError("it is truncated")
        yield _Element(kind, data[start : start + size])
        place = start + size if kind == _COMPRESSED else start + size + -(start + size) % 8


def _decompressed(content: memoryview) -> memoryview:
    out = zlib.decompressobj().decompress(content, _MOST)
    if len(out) == _MOST:
        raise ValueError("it is too large")
    return memoryview(out)


def _decoded(name: str, order: str, flags: _Element, shape: _Element, values: list[_Element]) -> np.ndarray:
    sizes = struct.unpack(f"{order}{len(shape.content) // 4}i", shape.content)
    are_bytes = (flags.kind, shape.kind, [each.kind for each in values]) == (_UINT32, _INT32, [_UINT8])
    if not are_bytes or struct.unpack_from(f"{order}I", flags.content)[0] & 0xFF != _UINT8_CLASS:
        raise ValueError(f"{name} is no array of uint8")
    if min(sizes, default=0) < 0 or math.prod(sizes) != len(values[0].content):
        raise ValueError(f"{name} is said to be of shape {sizes}, but there are {len(values[0].content)} bytes of it")
    return np.frombuffer(values[0].content, np.uint8).reshape(sizes, order="F")
