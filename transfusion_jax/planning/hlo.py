"""Reads the text of a compiled XLA program (HLO) into computations and their instructions.

The text is what `jax.stages.Compiled.as_text()` gives. XLA documents its meaning at
https://openxla.org/xla/operation_semantics.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "token": 0, "opaque": 0}  # the others say theirs in their name
ARRAY = re.compile(r"\b([a-z]\w*)\[([<=\d,]*)\](\{[^}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")
TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}"
)
CALLEES = {  # the computations that an instruction runs, by opcode; those of reductions and sorts are not counted
    "while": ("condition", "body"),
    "fusion": ("calls",),
    "call": ("to_apply",),
    "async-start": ("calls",),
    "conditional": ("true_computation", "false_computation", "branch_computations"),
}


@dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool  # a TPU's compiler keeps some in memories on the chip's core

    @property
    def bytes(self) -> float:
        """Its size, padding of tiles left out."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype, int(digits.group()) if digits else 8)
        return math.prod(self.shape) * bits / 8


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result: tuple[Array, ...]  # of a tuple, the arrays in it
    operands: tuple[str, ...]
    literal: str  # what stands in the parentheses
    attributes: str  # what stands behind them
    root: bool

    def called(self) -> tuple[str, ...]:
        """The computations that it runs."""
        found: list[str] = []
        for key in CALLEES.get(self.opcode, ()):
            match = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
            found += NAME.findall(match.group(1)) if match else []
        return tuple(found)

    def attribute(self, key: str) -> str:
        """A value without spaces or braces, or "" where there is none."""
        match = re.search(rf'\b{key}="?([^\s,"{{}}]+)', self.attributes)
        return match.group(1) if match else ""


@dataclass(frozen=True)
class Computation:
    """Instructions in the order of their execution."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by name."""
        return {i.name: i for i in self.instructions}

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(i for i in reversed(self.instructions) if i.root)

    @property
    def parameters(self) -> tuple[Instruction, ...]:
        """Its parameters, in order."""
        found = [i for i in self.instructions if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.literal)))

    def arrays_of(self, instruction: Instruction) -> tuple[Array, ...]:
        """The arrays that an instruction reads."""
        return tuple(a for name in instruction.operands for a in self.by_name[name].result)


@dataclass(frozen=True)
class HloProgram:
    """A compiled program, for one of its devices."""

    computations: dict[str, Computation]
    entry: Computation

    def trips(self, where: Computation, loop: Instruction) -> int | None:
        """How often a `while` runs its body; None where only the run knows.

        XLA for CPU and GPU writes the number down; for TPU it is read from the condition, `counter < constant`,
        with a counter that grows by one.
        """
        if known := TRIPS.search(loop.attributes):
            return int(known.group(1))
        condition = self.computations[loop.called()[0]]
        compared = condition.root
        if compared.opcode != "compare" or compared.attribute("direction") != "LT":
            return None
        counter, bound = (condition.by_name[name] for name in compared.operands)
        if counter.opcode != "get-tuple-element" or bound.opcode != "constant":
            return None
        begin = 0
        initial = where.by_name[loop.operands[0]]
        if initial.opcode == "tuple":
            value = where.by_name[initial.operands[int(counter.attribute("index"))]]
            while value.opcode in ("copy", "bitcast") or value.opcode.startswith("copy-"):
                value = where.by_name[value.operands[0]]
            begin = int(value.literal) if value.opcode == "constant" else 0
        return int(bound.literal) - begin


def parse_hlo(text: str) -> HloProgram:
    """A program from its text.

    Raises:
        ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    lines: list[Instruction] = []
    entry = name = ""
    for line in text.splitlines():
        if header := (not line.startswith(" ") and HEADER.match(line)):
            name, lines = header.group(2), []
            entry = name if header.group(1) else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(name, tuple(lines))
            name = ""
        elif name and " = " in line:
            lines.append(_instruction(line))
    if not entry:
        raise ValueError("the text holds no ENTRY computation: it is not that of a compiled program")
    return HloProgram(computations, computations[entry])


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    root, name = left.startswith("ROOT "), left.split()[-1].removeprefix("%")
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    result, rest = right[:end], right[end:].strip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close - 1]
    return Instruction(name, opcode, _arrays(result), tuple(NAME.findall(inside)), inside, rest[close:], root)


def _closing(text: str, begin: int) -> int:
    """The place behind the parenthesis that closes the one at `begin`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, begin):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n), "S(" not in (layout or ""))
        for dtype, dims, layout in ARRAY.findall(text)
    )


def group(attributes: str, devices: int) -> np.ndarray:
    """The devices of the first group of a collective, by their place in the mesh.

    Groups are written as lists `{{0,1},{2,3}}`, as a reshaped and transposed count `[2,4]<=[4,2]T(1,0)`, as axes
    of a mesh `mesh['a'=2,'b'=4] {'b'}`, whose devices may be a transposed count, or for permutations as pairs of
    source and target.

    Raises:
        ValueError: they are written in another way.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return np.array([int(n) for n in pairs.groups()])
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, order, turn = counted.groups()
        return _counted(order, turn).reshape(_numbers(shape))[0]
    if named := MESH_GROUPS.search(attributes):
        mesh, order, turn, axes = named.groups()
        return _axes_group(mesh, _counted(order, turn) if order else None, axes)
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return np.array(_numbers(listed.group(1)))
    if "replica_groups={}" in attributes or "replica_groups" not in attributes:
        return np.arange(devices)
    raise ValueError(f"groups of devices in an unknown notation: {attributes[:200]}")


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in (text or "").split(",") if n]


def _counted(order: str, turn: str | None) -> np.ndarray:
    """0, 1, 2, … in a shape, transposed, and in a row again."""
    shape = _numbers(order)
    return np.arange(math.prod(shape)).reshape(shape).transpose(_numbers(turn) or range(len(shape))).reshape(-1)


def _axes_group(mesh: str, devices: np.ndarray | None, axes: str) -> np.ndarray:
    """The first group over some axes, or parts `'name':(major)size` of them."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    numbers = np.arange(math.prod(sizes.values())) if devices is None else devices
    numbers = numbers.reshape(list(sizes.values()))
    chosen = {name: (major, size) for name, major, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}
    for place, (name, whole) in enumerate(sizes.items()):
        if name not in chosen:
            numbers = numbers.take([0], axis=place)
        elif chosen[name][1]:
            major, size = map(int, chosen[name])
            minor = whole // (major * size)
            numbers = numbers.take(np.arange(size) * minor, axis=place)
    return numbers.reshape(-1)
