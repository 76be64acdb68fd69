"""What a compiled program does on one device: products, kernels, traffic of memory and network.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from transfusion_jax.planning.hlo import Array, Computation, HloProgram, Instruction, group
from transfusion_jax.planning.roofline import COLLECTIVES, Collective, Work

NO_TRAFFIC = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "iota"),
    *(
        "send",
        "recv",
        "after-all",
        "partition-id",
        "replica-id",
        "async-update",
        "async-done",
        "opt-barrier",
        "custom-call-done",
    ),
}
ASIDE = ("copy-start", "slice-start")
ASYNC_ROOT = re.compile(r'custom_call_target="AsyncCollective(Start|Done)"')
ACROSS_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}x[^"]*",_xla_megascale_transfer_type="(\w+)"')
KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__gpu\$xla\.gpu\.triton|triton_kernel_call)"')


@dataclass
class Counts:
    """A step on one device."""

    work: list[Work] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=dict)  # executions by name
    open_loops: list[str] = field(default_factory=list)  # loops whose trips only a run knows, counted once

    @property
    def flops(self) -> float:
        """Of matrix products and convolutions, kernels left out."""
        return sum(w.flops * w.times for w in self.work)

    @property
    def bytes(self) -> float:
        """Of HBM, read and written."""
        return sum(w.bytes * w.times for w in self.work)


def count_program(program: HloProgram, mesh: dict[str, int]) -> Counts:
    """Counts a program whose devices stand in a mesh of these axes, in row-major order."""
    counts = Counts()
    _walk(program, program.entry, 1, mesh, counts)
    merged: dict[tuple, Collective] = {}
    for c in counts.collectives:
        key = (c.kind, c.axes, c.group, c.dtype, c.overlaps)
        times, sent = (merged[key].times, merged[key].bytes) if key in merged else (0, 0.0)
        merged[key] = Collective(*key, times + c.times, sent + c.bytes)
    counts.collectives = sorted(merged.values(), key=lambda c: -c.bytes)
    return counts


def _walk(program: HloProgram, where: Computation, times: int, mesh: dict[str, int], counts: Counts) -> None:
    for i in where.instructions:
        if i.opcode == "while":
            trips = program.trips(where, i)
            if trips is None:
                counts.open_loops.append(i.name)
            _walk(
                program, program.computations[i.called()[1]], times * (1 if trips is None else trips), mesh, counts
            )
            continue
        if i.opcode in ("call", "conditional"):
            for name in i.called():  # of a conditional all branches: XLA writes few, and small ones
                _walk(program, program.computations[name], times, mesh, counts)
            continue
        flops, kernel = 0.0, ""
        for inner_of, inner in _inside(program, where, i):
            flops += product_flops(inner_of, inner)
            if found := collective(program, inner_of, inner, i, mesh):
                counts.collectives += [_times(found, times)]
            if inner.opcode == "custom-call" and KERNEL.search(inner.attributes):
                kernel = re.sub(r"(\.\d+|\.clone)+$", "", inner.name)
                counts.kernels[kernel] = counts.kernels.get(kernel, 0) + times
        traffic = hbm_bytes(program, where, i)
        if flops or traffic or kernel:
            counts.work.append(Work(flops, traffic, times, i.opcode in ASIDE, kernel))


def _inside(
    program: HloProgram, where: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """The instruction, and those of the computations that are fused into it."""
    yield where, instruction
    for name in instruction.called():
        inner = program.computations[name]
        for i in inner.instructions:
            yield from _inside(program, inner, i)


def _times(c: Collective, times: int) -> Collective:
    return Collective(c.kind, c.axes, c.group, c.dtype, c.overlaps, c.times * times, c.bytes * times)


def collective(
    program: HloProgram, where: Computation, instruction: Instruction, outer: Instruction, mesh: dict[str, int]
) -> Collective | None:
    """What an instruction exchanges; None where it exchanges nothing, or goes on with what was begun.

    On TPU one exchange that overlaps with other work stands in several fusions: one that starts it, some that move
    it on beside a product, one that ends it. The first is counted.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind == "send" and (across := ACROSS_SLICES.search(instruction.attributes)):
        return _across_slices(where.arrays_of(instruction)[0], across.group(1).count(",") + 1, across.group(2))
    if kind not in COLLECTIVES:
        return None
    overlaps = instruction.opcode.endswith("-start") or outer.opcode == "async-start"
    if outer.opcode == "fusion":
        fused = program.computations[outer.called()[0]]
        marked = ASYNC_ROOT.search(fused.root.attributes)
        if (marked and marked.group(1) == "Done") or fused.name.startswith("async_collective_fusion"):
            return None
        overlaps = bool(marked)
    members = group(instruction.attributes, math.prod(mesh.values()))
    places = np.array(np.unravel_index(members, list(mesh.values())))
    axes = tuple(axis for axis, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1)
    operands = where.arrays_of(instruction)
    size = sum(a.bytes for a in operands)
    largest = max(operands, key=lambda a: a.bytes)
    sent = size * COLLECTIVES[kind](len(members))
    return Collective(kind, axes, len(members), largest.dtype, overlaps, 1, sent) if axes else None


def _across_slices(sent: Array, slices: int, kind: str) -> Collective:
    """What a chip gives to its host for the chips at its place in the other slices, which the host exchanges."""
    name = kind.lower().replace("_", "-")
    return Collective(name, ("data",), slices, sent.dtype, True, 1, sent.bytes * COLLECTIVES[name](slices))


def product_flops(where: Computation, instruction: Instruction) -> float:
    """Operations of a matrix product or convolution, a multiplication and an addition being two."""
    if instruction.opcode == "dot":
        left, *_ = where.arrays_of(instruction)
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        shared = [left.shape[int(n)] for n in contracted.group(1).split(",") if n] if contracted else []
        return 2.0 * math.prod(instruction.result[0].shape) * math.prod(shared)
    if instruction.opcode == "convolution":
        left, right = where.arrays_of(instruction)
        return _convolution_flops(left, right, instruction)
    return 0.0


def _convolution_flops(left: Array, right: Array, instruction: Instruction) -> float:
    """A TPU's compiler writes products as convolutions; places in their padding are not computed."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    of_left, of_right, of_out = labels.groups()
    out = instruction.result[0].shape
    valid = 1
    for number in sorted(c for c in of_out if c.isdigit()):
        rank = int(number)
        valid *= _valid_places(
            left.shape[of_left.index(number)],
            right.shape[of_right.index(number)],
            out[of_out.index(number)],
            {key: _window(instruction.attributes, key, rank) for key in WINDOW},
        )
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    batch = left.shape[of_left.index("b")] // batch_groups
    return 2.0 * valid * batch * right.shape[of_right.index("i")] * out[of_out.index("f")]


WINDOW = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}  # with what is meant where none stands


def _window(attributes: str, key: str, rank: int) -> str:
    window = re.search(r"window=\{([^}]*)\}", attributes)
    found = re.search(rf"\b{key}=(\S+)", window.group(1)) if window else None
    return found.group(1).split("x")[rank] if found else WINDOW[key]


def _valid_places(inputs: int, kernel: int, outputs: int, window: dict[str, str]) -> int:
    """Pairs of output and kernel places that meet an input, along one axis."""
    low = int(window["pad"].split("_")[0])
    dilation = int(window["lhs_dilate"])
    at = np.arange(outputs)[:, None] * int(window["stride"]) - low
    at = at + np.arange(kernel) * int(window["rhs_dilate"])
    return int(np.sum((at >= 0) & (at < (inputs - 1) * dilation + 1) & (at % dilation == 0)))


def hbm_bytes(program: HloProgram, where: Computation, instruction: Instruction) -> float:
    """What an instruction reads from HBM and writes there, each operand once; of slices the part that is used."""
    opcode = instruction.opcode
    if opcode in NO_TRAFFIC or opcode.removesuffix("-start") in COLLECTIVES:
        return 0.0
    if opcode.endswith("-done"):
        return 0.0
    if opcode in ASIDE:
        moved = min(instruction.result[:2], key=lambda a: a.bytes)
        return moved.bytes * sum(a.in_hbm for a in instruction.result[:2])
    written = sum(a.bytes for a in instruction.result if a.in_hbm)
    operands = [where.by_name[name] for name in instruction.operands]
    if opcode == "fusion":
        return _fusion_bytes(program.computations[instruction.called()[0]], instruction, operands)
    if opcode in ("dynamic-slice", "slice", "gather", "broadcast"):
        return 2 * written
    if opcode in ("dynamic-update-slice", "scatter"):
        update = operands[1 if opcode == "dynamic-update-slice" else -1]
        return 2 * sum(a.bytes for a in update.result if a.in_hbm)
    return written + sum(a.bytes for o in operands for a in o.result if a.in_hbm)


def _fusion_bytes(fused: Computation, instruction: Instruction, operands: list[Instruction]) -> float:
    """A fused slice reads its part alone, a fused update writes its part alone; exchanges are counted elsewhere."""
    if ASYNC_ROOT.search(fused.root.attributes):
        return 0.0
    total = 0.0
    exchanged = {name for i in fused.instructions if i.opcode in COLLECTIVES for name in (i.name, *i.operands)}
    passed = exchanged | {i.name for i in fused.parameters}  # on to the fusion that ends the exchange
    updates = {i.operands[0]: i for i in fused.instructions if i.opcode == "dynamic-update-slice"}
    for parameter, operand in zip(fused.parameters, operands, strict=True):
        readers = [i for i in fused.instructions if parameter.name in i.operands]
        size = sum(a.bytes for a in operand.result if a.in_hbm)
        if parameter.name in updates or parameter.name in exchanged or readers == [fused.root]:
            continue
        if readers and all(i.opcode in ("dynamic-slice", "slice", "gather") for i in readers):
            size = min(size, sum(a.bytes for i in readers for a in i.result))
        total += size
    tupled = fused.root.opcode == "tuple"
    for array, name in zip(instruction.result, fused.root.operands if tupled else [fused.root.name], strict=False):
        if tupled and name in passed:
            continue
        inner = [i for i in updates.values() if i.result[0].shape == array.shape]
        part = fused.by_name[inner[0].operands[1]].result[0].bytes if inner else array.bytes
        total += part if array.in_hbm else 0.0
    return total
