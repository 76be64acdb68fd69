"""TPU slices as Google Cloud names them.

Sources: the pages "Plan TPUs in GKE", "TPU versions" and "TPU software versions" of Google Cloud's documentation.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace

from transfusion_jax.config import ConfigError, require
from transfusion_jax.planning.topology import CHIPS_PER_HOST, Topology, parse_topology


@dataclass(frozen=True)
class Names:
    """What one kind of chip is called: as a node label of GKE, in bookings, and the software of its TPU VMs."""

    gke: str
    booking: str
    runtime: str


NAMES = {
    "v5e": Names("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": Names("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5"),
    "v6e": Names("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
}


@dataclass(frozen=True)
class Slices:
    """The machines of a job: slices that are alike."""

    topology: Topology
    chips_per_host: int

    @property
    def names(self) -> Names:
        """Of their chips."""
        return NAMES[self.topology.chip.name]

    @property
    def count(self) -> int:
        """How many slices."""
        return self.topology.slices

    @property
    def shape(self) -> str:
        """Of one slice, such as 4x4."""
        return "x".join(map(str, self.topology.shape))

    @property
    def hosts(self) -> int:
        """Of one slice."""
        return math.prod(self.topology.shape) // self.chips_per_host

    @property
    def booking(self) -> str:
        """The booking name of one slice, such as v5p-128: some kinds count TensorCores."""
        return f"{self.names.booking}-{math.prod(self.topology.shape) * self.topology.chip.cores}"


def slices(arguments: argparse.Namespace, one_host_of_eight: bool) -> Slices:
    """The machines of a command line.

    Args:
        one_host_of_eight: whether eight chips of a kind that has hosts of eight are one host, not two.

    Raises:
        ConfigError: there are no such machines.
    """
    topology = parse_topology(arguments.topology)
    if topology.chip.name not in NAMES:
        raise ConfigError(f"--topology {arguments.topology}: TPUs alone are launched here; for GPUs: launch slurm")
    require(
        topology.slices == 1 or arguments.slices == 1, f"--topology {arguments.topology} names its slices already"
    )
    topology = replace(topology, slices=max(arguments.slices, topology.slices))
    chips = math.prod(topology.shape)
    largest = topology.chip.host if one_host_of_eight else CHIPS_PER_HOST
    per_host = chips if chips <= largest else CHIPS_PER_HOST
    require(chips % per_host == 0, f"--topology {arguments.topology} does not fill hosts of {per_host} chips")
    return Slices(topology, per_host)
