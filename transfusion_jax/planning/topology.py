"""Machines by name: chips, how many, how they are connected.

Peaks are those of `devices.PUBLISHED_PEAK`. The rest:

- TPU: https://docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e for bandwidth of HBM and of the network between
  slices; https://jax-ml.github.io/scaling-book/tpus for what a link between chips reaches. Memory is what libtpu's
  compiler lets a program use: it names the number where one does not fit.
- GPU: NVIDIA's data sheets of A100 80GB, H100 SXM, H200 and B200, and of the DGX systems of eight that hold them:
  one network port for each GPU, 200 Gb/s with A100 and 400 Gb/s with the others.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from transfusion_jax.config import ConfigError, nearest, require
from transfusion_jax.errors import whole_number
from transfusion_jax.parallel.devices import PUBLISHED_PEAK

GIB = 2**30
CHIPS_PER_HOST = 4  # of TPU slices with several hosts, of every kind
MOST_CHIPS = 1_000_000


@dataclass(frozen=True)
class Chip:
    """One accelerator, as JAX counts devices."""

    name: str
    device_kind: str  # JAX's name
    peak: float  # FLOP/s in bfloat16
    memory: float  # bytes that a program can use
    bandwidth: float  # of that memory, bytes/s
    link: float  # bytes/s in one direction: TPU, of one link to a neighbour; GPU, to the others of its node
    network: float  # bytes/s in one direction beyond that: TPU, between slices; GPU, between nodes
    host: int  # chips of the largest host
    wraps: int = 0  # TPU: the extent from which on a torus closes; 0: no torus
    cores: int = 1  # TensorCores that a booking name counts for one chip

    @property
    def is_tpu(self) -> bool:
        """Whether programs for it can be compiled by libtpu."""
        return self.wraps > 0


def _published(name: str, device_kind: str, *rest: float, wraps: int = 0, cores: int = 1) -> Chip:
    memory, bandwidth, link, network, host = rest
    peak = PUBLISHED_PEAK[device_kind]
    return Chip(name, device_kind, peak, memory, bandwidth, link, network, int(host), wraps, cores)


CHIPS = {
    chip.name: chip
    for chip in (
        _published("v5e", "TPU v5 lite", 15.75 * GIB, 819e9, 4.5e10, 6.4e12 / 8 / 256, 8, wraps=16),
        _published("v5p", "TPU v5", 95.74 * GIB, 2765e9, 9e10, 50e9 / 8, 4, wraps=4, cores=2),
        _published("v6e", "TPU v6 lite", 31.25 * GIB, 1638e9, 9e10, 100e9 / 8, 8, wraps=16),
        _published("a100", "NVIDIA A100-SXM4-80GB", 80e9, 2039e9, 300e9, 25e9, 8),
        _published("h100", "NVIDIA H100 80GB HBM3", 80e9, 3350e9, 450e9, 50e9, 8),
        _published("h200", "NVIDIA H200", 141e9, 4800e9, 450e9, 50e9, 8),
        _published("b200", "NVIDIA B200", 180e9, 8000e9, 900e9, 50e9, 8),
    )
}
BOOKED_AS = {"v5litepod": "v5e"}  # names of bookings that differ from the chip's
SHAPES: dict[
    int, dict[int, tuple[int, ...]]
] = {  # what a booked number of chips is, by the chip's number of torus axes
    2: {4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)},
    3: {
        **{4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8)},
        **{256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16), 4096: (16, 16, 16)},
    },
}


@dataclass(frozen=True)
class Topology:
    """Chips of one kind: slices that are a torus each, or nodes of GPUs."""

    chip: Chip
    shape: tuple[int, ...]  # of one slice; GPUs: (per node, nodes)
    slices: int = 1
    booked: str = ""  # the booking name that it was given by

    @property
    def chips(self) -> int:
        """In all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def hosts(self) -> int:
        """Machines that the chips stand in."""
        if not self.chip.is_tpu:
            return max(1, self.chips // self.shape[0])
        of_slice = math.prod(self.shape)
        return self.slices * (1 if of_slice <= self.chip.host else of_slice // CHIPS_PER_HOST)

    @property
    def name(self) -> str:
        """As `parse_topology` takes it, and as libtpu does where there is one slice."""
        prefix = f"{self.slices}x" if self.slices > 1 else ""
        return f"{prefix}{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def describe(self) -> str:
        """In words; a booking name may count otherwise than in chips."""
        counts = f"{self.chips:,} chips on {self.hosts:,} hosts"
        if self.chip.cores > 1:
            counts += f", {self.chips * self.chip.cores:,} TensorCores as bookings count"
        return f"{self.booked} is {self.name}: {counts}" if self.booked else f"{self.name}: {counts}"

    def rate(self, members: int, stride: int = 1, spans_slices: bool = False) -> tuple[float, bool]:
        """Bytes/s that each chip sends in a collective, and whether they leave its slice or node.

        On a torus a group takes whole axes where it can: both directions of each axis that closes, one of each that
        does not. GPUs send within a node as fast as NVLink, and beyond it share their ports.

        Args:
            members: of the collective.
            stride: devices from one member to the next, in the order of the mesh.
            spans_slices: whether they lie on all slices; each chip then sends its part of what its slice holds.
        """
        if spans_slices:
            return self.chip.network * max(members // self.slices, 1), True
        if not self.chip.is_tpu:
            node = self.shape[0]
            if members * stride <= node:
                return self.chip.link, False
            return min(self.chip.link, self.chip.network * max(node // stride, 1)), True
        left, links = members, 0
        for extent in sorted(self.shape, reverse=True):
            if left > 1 and left % extent == 0 and extent > 1:
                left //= extent
                links += 2 if self._closes(extent) else 1
            elif left > 1 and extent % left == 0:
                left = 1
                links += 1
        return self.chip.link * max(links, 1), False

    def _closes(self, extent: int) -> bool:
        """Torus axes close at the full extent of a v5e or v6e pod, and of whole cubes of a v5p."""
        if len(self.shape) == 2:
            return extent == self.chip.wraps
        return min(self.shape) >= self.chip.wraps


def parse_topology(text: str) -> Topology:
    """A topology from `v5e:16x16`, `v5p:4x4x4`, `2xv5e:16x16`, `h100:8x4`, or a booking name such as `v5p-128`.

    Raises:
        ConfigError: there is no such chip, or no such shape of it.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*?)(?::(\d+(?:x\d+)+)|-(\d+))", text)
    if not match:
        raise ConfigError(
            f"--topology {text!r} is not a name such as v5e:16x16, 2xv5e:16x16, v5p-128 or h100:8x4 "
            "(GPUs per node × nodes)"
        )
    slices, name, shape, count = match.groups()
    numbers = [whole_number(n, MOST_CHIPS) for n in (slices or "1", count or "1", *(shape or "1").split("x"))]
    require(
        math.prod(MOST_CHIPS + 1 if n is None else n for n in numbers) <= MOST_CHIPS,
        f"--topology {text}: at most {MOST_CHIPS:,} chips are planned for",
    )
    name = BOOKED_AS.get(name, name)
    require(name in CHIPS, f"--topology {text}: unknown chip {name}: {nearest(name, CHIPS)}")
    chip = CHIPS[name]
    require(chip.is_tpu or not (slices or count), f"--topology {text}: GPUs are named {name}:PER_NODExNODES")
    axes = 3 if chip.wraps == 4 else 2
    if count:
        chips, rest = divmod(int(count), chip.cores)
        sizes = SHAPES[axes].get(chips, ()) if not rest else ()
        bookable = ", ".join(str(n * chip.cores) for n in SHAPES[axes])
        require(bool(sizes), f"--topology {text}: {name} is booked as {name}-N with N one of {bookable}")
    else:
        sizes = tuple(int(n) for n in shape.split("x"))
        require(len(sizes) == axes and min(sizes) > 0, f"--topology {text}: {name} takes {axes} extents above 0")
    booked = text if count else ""
    return Topology(chip, sizes, int(slices or 1), booked)
