"""The least time that a step can take on a machine, and the terms it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transfusion_jax.planning.topology import Topology

COLLECTIVES = {  # bytes that a device sends, in units of its operand's, among n devices by a ring
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-broadcast": lambda n: 1,
    "collective-permute": lambda n: 1,
}


@dataclass(frozen=True)
class Collective:
    """One kind of exchange over the same axes, all its executions together."""

    kind: str
    axes: tuple[str, ...]  # mesh axes along which the devices of a group differ
    group: int  # devices that take part
    dtype: str
    overlaps: bool  # runs beside other work
    times: int
    bytes: float  # that each device sends, over all times


@dataclass(frozen=True)
class Work:
    """One instruction of the schedule."""

    flops: float
    bytes: float  # of HBM, read and written
    times: int
    aside: bool = False  # a copy that goes on beside the next instructions
    kernel: str = ""  # the name of a custom kernel, whose operations are not in the text


@dataclass(frozen=True)
class Terms:
    """Seconds of one step, each term at its peak rate. What runs at the same time is not added."""

    compute: float  # all operations
    memory: float  # all traffic of HBM
    core: float  # each instruction the longer of the two, one after the other, but for copies beside them
    overlapped: float  # exchanges within a slice or node that may run beside the core
    exposed: float  # exchanges that the core waits for
    network: float  # exchanges across slices or nodes; also waited for

    @property
    def step(self) -> float:
        """The roofline: the core or what overlaps with it, and then what does not."""
        return max(self.core, self.overlapped) + self.exposed + self.network

    @property
    def bound(self) -> str:
        """What most of it is."""
        named = {"compute": self.compute, "memory": self.memory, "interconnect": self.overlapped + self.exposed}
        named["network"] = self.network
        return max(named, key=lambda name: named[name])


def terms(work: list[Work], collectives: list[Collective], topology: Topology, mesh: dict[str, int]) -> Terms:
    """Of the work and the exchanges of one chip.

    Args:
        work: instructions; the operations of kernels filled in.
        collectives: exchanges.
        topology: the machine.
        mesh: axes and sizes; the first, `data`, goes across slices.
    """
    chip = topology.chip
    pairs = [(w.flops * w.times / chip.peak, w.bytes * w.times / chip.bandwidth) for w in work]
    seconds = {"overlapped": 0.0, "exposed": 0.0, "network": 0.0}
    for c in collectives:
        inside = list(mesh)[max(list(mesh).index(axis) for axis in c.axes) + 1 :]
        stride = math.prod(mesh[axis] for axis in inside)
        rate, beyond = topology.rate(c.group, stride, topology.slices > 1 and "data" in c.axes)
        seconds["network" if beyond else "overlapped" if c.overlaps else "exposed"] += c.bytes / rate
    memory = sum(traffic for _, traffic in pairs)
    return Terms(
        compute=sum(flops for flops, _ in pairs),
        memory=memory,
        core=max(memory, sum(max(pair) for pair, w in zip(pairs, work, strict=True) if not w.aside)),
        **seconds,
    )
