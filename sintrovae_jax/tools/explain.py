"""The memory traffic of a compiled program: its heaviest instructions, their source lines, and totals by kind.

    python -m sintrovae_jax.main --config configs/cifar10.py --mode plan --explain --topology v5e:2x4

An instruction moves its operands and its outputs; a fusion counts as one instruction. If an array is only sliced, or
updated in a slice, only the slice counts. The body of a loop counts once, so the totals are for one step.

A TPU stores arrays in tiles, mostly of 8×128 elements, padded to whole tiles: a map of 64 channels, innermost, is half
padding, which is moved too. Arrays that the compiler keeps in a chip's own fast memory do not move at all,
but its own sum, on which the plan's roofline is based, counts them. All three numbers are given.
"""

import re
from typing import NamedTuple

from sintrovae_jax.tools.hlo import Instruction, Program, Size, sizes

KINDS = ("convolution", "normalisation", "resampling", "loss", "optimiser", "copies and layouts", "collective", "other")
_HEAVIEST = 20
_PACKAGE = "sintrovae_jax/"
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_CALLS = {"while", "call", "conditional", "async-start"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_PRODUCTS = ("convolution", "dot", "conv", "gemm", "matmul")  # opcodes, and parts of the names of library calls
_MOVES = {"copy", "copy-start", "slice-start", "transpose", "reshape", "concatenate", "reverse", *_SLICES}
_OF_FRAMES = (  # kinds, by a pattern of file:function in the call stack of an instruction
    (r"flax/linen/normalization\.py|:\w*[nN]orm(alized)?\b|/layers\.py:_(forward|backward|scaled)\b", "normalisation"),
    (r":(_?(pool|upsample|sums|copies|up_by|half_by|convolve_)\w*|blur|padded)\b", "resampling"),
    (r"/(objectives|perceptual)\.py:(?!at_least_float32)", "loss"),
    (r"/(optax|train_state)[/.]|:(apply_gradients|_update_copies)\b", "optimiser"),
)


class Moved(NamedTuple):
    """The bytes that one instruction moves, its kind, and the source line that it comes from."""

    size: Size
    kind: str
    name: str
    output: str
    source: str
    path: str


def moved(text: str) -> list[Moved]:
    """All instructions of a program that move bytes, the heaviest first."""
    program, out, seen = Program(text), [], set()
    waiting = [program.entry]
    while waiting:
        if (name := waiting.pop()) in seen:
            continue
        seen.add(name)
        computation = program.computations[name]
        for instruction in computation.values():
            if instruction.opcode in _CALLS:
                waiting += program.called(instruction)
            elif (size := _traffic(program, computation, instruction)) != Size():
                out.append(_described(program, instruction, size))
    return sorted(out, key=lambda each: each.size.padded, reverse=True)


def total(everything: list[Moved]) -> Size:
    """The sum of the bytes that instructions move."""
    return sum((move.size for move in everything), Size())


def _described(program: Program, instruction: Instruction, size: Size) -> Moved:
    output = re.sub(r"\{[^}]*\}", "", instruction.type)
    frames = list(program.frames(instruction))
    ours = [each for each in frames if _PACKAGE in each[0]] or frames
    source = f"{ours[0][0].rpartition(_PACKAGE)[2]}:{ours[0][2]}" if ours else "-"
    return Moved(size, _kind(program, instruction), instruction.name, output, source, instruction.path)


def _traffic(program: Program, computation: dict[str, Instruction], instruction: Instruction) -> Size:
    """The bytes that an instruction reads and writes."""
    opcode, output = instruction.opcode, instruction.size
    operands = [computation[name].size for name in instruction.operands if name in computation]
    if opcode in _FREE or opcode.endswith("-done"):
        size = Size()
    elif opcode == "custom-call" and instruction.type.startswith("("):  # a library call; its scratch is bytes
        size = sum(operands, sum(sizes(re.sub(r"\b[su]8\[\d*\]", "", instruction.type)), Size()))
    elif opcode == "fusion":
        size = _fusion_traffic(program.fused(instruction), output)
    elif opcode == "slice-start":  # from main memory to on-chip memory: ((source), slice, counter)
        part = sizes(instruction.type)[1].anywhere
        size = Size(part, part, 2 * part)
    elif opcode.endswith("-start") and opcode != "all-reduce-start":
        size = output  # a tuple of the inputs and outputs
    elif opcode in _SLICES:
        size = output + output
    elif opcode == "dynamic-update-slice":
        size = operands[1] + operands[1]
    else:
        size = sum(operands, output)
    return size


def _fusion_traffic(fused: dict[str, Instruction], output: Size) -> Size:
    """The bytes of a fusion's operands and outputs; for arrays that it only slices or updates in place, the slice's."""
    (root,) = (each for each in fused.values() if each.root)
    total = fused[root.operands[1]].size if root.opcode == "dynamic-update-slice" else output
    for parameter in fused.values():
        if parameter.opcode != "parameter":
            continue
        users = [each for each in fused.values() if parameter.name in each.operands]
        if users and all(each.opcode in _SLICES and each.operands[0] == parameter.name for each in users):
            total = sum((each.size for each in users), total)
        elif not (users == [root] and root.opcode == "dynamic-update-slice" and root.operands[0] == parameter.name):
            total += parameter.size
    return total


def _kind(program: Program, instruction: Instruction) -> str:
    """One of `KINDS`, by the instruction's operation, or else by the call stack that it comes from."""
    opcodes = {instruction.opcode}
    if instruction.opcode == "fusion":
        opcodes = {each.opcode for each in program.fused(instruction).values()} - _FREE
    target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
    if opcodes & {*_PRODUCTS} or (target and any(part in target[1].lower() for part in _PRODUCTS)):
        return "convolution"
    if opcodes <= _MOVES:
        return "copies and layouts"
    if re.match(r"all-|reduce-scatter|collective", instruction.opcode):
        return "collective"
    for file, function, _ in program.frames(instruction):
        for pattern, kind in _OF_FRAMES:
            if re.search(pattern, f"{file}:{function}"):
                return kind
    return "other"


def report(text: str, counted: float | None) -> str:
    """The table that `--explain` prints for a program. counted: the bytes by the compiler's own count."""
    everything = moved(text)
    whole = total(everything)
    lines = [
        f"moved: {whole.padded / 1e9:.3f} GB, {whole.plain / 1e9:.3f} GB of it not padding; "
        f"with the chip's own memory {whole.anywhere / 1e9:.3f} GB"
    ]
    if counted:
        lines[0] += f", where the compiler counts {counted / 1e9:.3f} GB ({whole.anywhere / counted - 1:+.1%})"
    for kind in KINDS:
        moves = [move for move in everything if move.kind == kind]
        size = total(moves)
        lines.append(f"{_gigabytes(size)}  {size.padded / max(whole.padded, 1):4.0%}  {kind}: {len(moves)}")
    lines.append(f"  padded    plain  the {_HEAVIEST} heaviest: kind, line, what it writes, where it was traced")
    for move in everything[:_HEAVIEST]:
        output = move.output if len(move.output) < 70 else move.output[:66] + "...)"
        lines.append(f"{_gigabytes(move.size)}  {move.kind}  {move.source}  {output}  {move.path[-80:]}")
    return "\n".join(lines)


def _gigabytes(size: Size) -> str:
    return f"{size.padded / 1e9:8.3g} {size.plain / 1e9:8.3g}"
