import pytest

from transfusion_jax.planning.roofline import Collective, Work, terms
from transfusion_jax.planning.topology import parse_topology

V5E = parse_topology("v5e:16x16")
MESH = {"data": 2, "fsdp": 32, "context": 1, "tensor": 4}


def exchange(axes, group, overlaps, bytes):
    return Collective("all-gather", axes, group, "bf16", overlaps, 1, bytes)


def test_each_instruction_takes_the_longer_of_its_two_and_what_overlaps_is_not_added():
    peak, bandwidth, link = V5E.chip.peak, V5E.chip.bandwidth, V5E.chip.link
    work = [Work(2 * peak, bandwidth, 1), Work(0.0, bandwidth / 2, 4)]
    collectives = [exchange(("fsdp",), 32, True, 3 * 3 * link), exchange(("tensor",), 4, False, 5 * link)]
    found = terms(work, collectives, V5E, MESH)
    assert (found.compute, found.memory, found.core) == pytest.approx((2, 3, 4))
    assert (found.overlapped, found.exposed, found.network) == pytest.approx((3, 5, 0))
    assert found.step == pytest.approx(4 + 5)
    assert found.bound == "interconnect"


def test_data_goes_across_slices_and_outer_axes_across_nodes():
    two = parse_topology("2xv5e:16x16")
    rows = ("data", "fsdp")
    across = terms([], [exchange(rows, 128, True, 128 // 2 * two.chip.network)], two, MESH)
    assert (across.network, across.overlapped) == pytest.approx((1, 0))
    gpus, mesh = parse_topology("h100:8x4"), {"data": 1, "fsdp": 8, "context": 1, "tensor": 4}
    spread = terms([], [exchange(("fsdp",), 8, True, 2 * gpus.chip.network)], gpus, mesh)  # two of each node
    assert (spread.network, spread.overlapped) == pytest.approx((1, 0))
    near = terms([], [exchange(("tensor",), 4, True, gpus.chip.link)], gpus, mesh)
    assert (near.network, near.overlapped) == pytest.approx((0, 1))
