"""A parser for the text of XLA's optimised programs, for planning: arrays, instructions, source lines.

A TPU stores arrays in tiles, mostly of 8×128 elements, padded to whole tiles: a map of 64 channels, innermost, is half
padding, which is moved too.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}

_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%[\w.-]+)")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


class Size(NamedTuple):
    """Bytes of arrays: the elements in main memory; the same with tiles' padding; and, with padding, in any memory."""

    plain: int = 0
    padded: int = 0
    anywhere: int = 0

    def __add__(self, other: object) -> "Size":
        if not isinstance(other, Size):
            return NotImplemented
        return Size(*map(sum, zip(self, other, strict=True)))


class Instruction(NamedTuple):
    """One line of a computation; `rest` is the text after the opening parenthesis of its operands."""

    name: str
    type: str
    opcode: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        return _NAME.findall(self.rest[: self.rest.index(")")])

    @property
    def size(self) -> Size:
        return sum(sizes(self.type), Size())

    @property
    def path(self) -> str:
        """The modules and transformations that it was traced in."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


def sizes(text: str) -> list[Size]:
    """The sizes of the arrays in a type in the program's text, such as `bf16[8,64]{1,0:T(8,128)(2,1)}`.

    S(1) and up are on-chip memories. Finer tiles such as the (2,1) only reorder elements within a tile.
    """
    return [_size(*found) for found in _ARRAY.findall(text)]


def _size(kind: str, dims: str, layout: str) -> Size:
    shape = [int(n) for n in dims.split(",") if n]
    order, _, rest = layout.partition(":")
    minor = [shape[int(n)] for n in order.split(",") if n] or shape[::-1]
    found = re.search(r"T\(([\d,]+)\)", rest)
    tile = [int(n) for n in found[1].split(",")][::-1] if found else []
    minor += [1] * (len(tile) - len(minor))
    whole = [-(-n // t) * t for n, t in zip(minor, tile, strict=False)] + minor[len(tile) :]
    plain, padded = (BYTES.get(kind, 1) * math.prod(each) for each in (shape, whole))
    return Size(0, 0, padded) if re.search(r"S\([1-9]", rest) else Size(plain, padded, padded)


class Program:
    """The computations of an optimised program's text, and the source lines that it names."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self._tables: dict[str, dict[int, Any]] = {name: {} for name in _TABLES}
        current: dict[Any, Any] = {}
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if header := _HEADER.match(line):
                current = self.computations[header[2]] = {}
                self.entry = header[2] if header[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                current[found[2]] = Instruction(found[2], found[3], found[4], found[5], bool(found[1]))
            elif line in _TABLES:
                current = self._tables[line]
            elif row := re.match(r'(\d+) (?:"(.*)"|\{(.*)\})$', line):
                current[int(row[1])] = row[2] or {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", row[3])}
        # jaxlib 0.10.2 writes a parent's number plus one: the first frame would be its own.
        self._shift = int(self._tables["StackFrames"].get(1, {}).get("parent_frame_id") == 1)

    def frames(self, instruction: Instruction) -> Iterator[tuple[str, str, int]]:
        """(file, function, line) of the calls that the instruction comes from, the innermost first."""
        if found := re.search(r'source_file="([^"]*)"(?: source_line=(\d+))?', instruction.rest):
            yield found[1], "", int(found[2] or 0)
        files, functions, places, frames = self._tables.values()
        found = re.search(r"stack_frame_id=(\d+)", instruction.rest)
        index = int(found[1]) if found else 0
        while index in frames:
            place = places[frames[index]["file_location_id"]]
            yield files[place["file_name_id"]], functions[place["function_name_id"]], place["line"]
            index = frames[index].get("parent_frame_id", 0) - self._shift

    def called(self, instruction: Instruction) -> list[str]:
        """The names of the computations that an instruction calls."""
        names = [name for group in _CALLED.findall(instruction.rest) for name in _NAME.findall(group)]
        return [name for name in names if name in self.computations]

    def fused(self, instruction: Instruction) -> dict[str, Instruction]:
        """The computation of a fusion."""
        return self.computations[self.called(instruction)[0]]
