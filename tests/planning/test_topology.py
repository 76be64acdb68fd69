import pytest

from transfusion_jax.config import ConfigError
from transfusion_jax.planning.topology import CHIPS, SHAPES, parse_topology


@pytest.mark.parametrize(
    ("text", "name", "chips", "hosts"),
    [
        ("v5e:16x16", "v5e:16x16", 256, 64),
        ("v5litepod-256", "v5e:16x16", 256, 64),
        ("v5e-8", "v5e:2x4", 8, 1),
        ("v5e:4x4", "v5e:4x4", 16, 4),  # hosts of eight chips are alone
        ("3xv6e-8", "3xv6e:2x4", 24, 3),
        ("v6e-256", "v6e:16x16", 256, 64),
        ("v5p-128", "v5p:4x4x4", 64, 16),  # the booking counts TensorCores
        ("2xv5e:16x16", "2xv5e:16x16", 512, 128),
        ("4xv5p-8", "4xv5p:2x2x1", 16, 4),
        ("h100:8x4", "h100:8x4", 32, 4),
        ("b200:8x1", "b200:8x1", 8, 1),
    ],
)
def test_names_of_libtpu_of_bookings_and_of_gpus(text, name, chips, hosts):
    topology = parse_topology(text)
    assert (topology.name, topology.chips, topology.hosts) == (name, chips, hosts)
    assert parse_topology(topology.name) == parse_topology(topology.name)
    assert f"{chips} chips" in topology.describe()


def test_a_booking_that_counts_cores_says_so():
    assert parse_topology("v5p-128").describe() == (
        "v5p-128 is v5p:4x4x4: 64 chips on 16 hosts, 128 TensorCores as bookings count"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v7:2x2", "unknown chip v7: "),
        ("h10:8x4", "did you mean 'h100'"),
        ("v5p-100", "v5p is booked as v5p-N with N one of 8, 16, 32"),
        ("v5p-129", "booked as"),
        ("v5e:4x4x4", "v5e takes 2 extents"),
        ("v5p:4x4", "v5p takes 3 extents"),
        ("v5e:0x4", "above 0"),
        ("h100-8", "GPUs are named h100:PER_NODExNODES"),
        ("2xh100:8x4", "GPUs are named"),
        ("v5e", "is not a name such as v5e:16x16"),
    ],
)
def test_what_is_no_machine_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_topology(text)


def test_booked_shapes_hold_the_chips_they_are_booked_for():
    for shapes in SHAPES.values():
        for chips, shape in shapes.items():
            product = 1
            for extent in shape:
                product *= extent
            assert product == chips


def test_a_group_sends_through_the_links_that_it_has():
    """In links: a whole closed axis has two, an open one or a part of one has one."""
    link = CHIPS["v5e"].link
    v5e = parse_topology("v5e:16x16")
    assert [v5e.rate(n)[0] / link for n in (256, 16, 4, 32, 2)] == [4, 2, 1, 3, 1]
    assert parse_topology("v5e:8x8").rate(64)[0] / link == 2  # smaller than a pod: the torus does not close
    cube = parse_topology("v5p:4x4x4")
    assert [cube.rate(n)[0] / CHIPS["v5p"].link for n in (64, 16, 4, 2)] == [6, 4, 2, 1]
    assert not v5e.rate(256)[1]


def test_slices_and_nodes_share_a_slower_network():
    two = parse_topology("2xv5e:16x16")
    assert two.rate(512, spans_slices=True) == (256 * CHIPS["v5e"].network, True)  # each chip sends its part
    assert two.rate(2, spans_slices=True) == (CHIPS["v5e"].network, True)
    h100 = CHIPS["h100"]
    nodes = parse_topology("h100:8x4")
    assert nodes.rate(8) == (h100.link, False)
    assert nodes.rate(32) == (8 * h100.network, True)  # eight ports for eight members
    assert nodes.rate(4, stride=8) == (h100.network, True)  # one of each node
    assert nodes.rate(4, stride=2) == (h100.link, False)
