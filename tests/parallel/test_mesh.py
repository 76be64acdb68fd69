from dataclasses import dataclass

import pytest

from transfusion_jax.config import ConfigError, MeshConfig
from transfusion_jax.parallel.mesh import AXES, count_slices, make_mesh, reach_all


@dataclass(frozen=True)
class Chip:
    """What JAX's mesh_utils asks of a TPU device."""

    id: int
    coords: tuple[int, ...]
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0


def two_slices():
    places = [(s, x, y) for s in range(2) for y in range(4) for x in range(4)]
    return [Chip(number, (x, y, 0), s) for number, (s, x, y) in enumerate(places)]


@pytest.mark.parametrize("sizes", [(2, 16, 1, 1), (4, 4, 2, 1), (8, 1, 1, 4), (-1, 8, 1, 2)])
def test_slices_follow_each_other_along_data_alone(sizes):
    chips = two_slices()
    assert count_slices(chips) == 2
    mesh = make_mesh(MeshConfig(**dict(zip(AXES, sizes, strict=True))), chips)
    half = mesh.devices.shape[0] // 2
    for number, part in enumerate((mesh.devices[:half], mesh.devices[half:])):
        assert {chip.slice_index for chip in part.flat} == {number}
    assert len({chip.id for chip in mesh.devices.flat}) == 32


def test_parameters_are_not_split_over_slices():
    with pytest.raises(ConfigError, match=r"mesh.data 1 must be a multiple of the 2 slices"):
        make_mesh(MeshConfig(data=1, fsdp=32), two_slices())


def test_every_device_answers():
    reach_all(make_mesh(MeshConfig(data=2, fsdp=2, context=2, tensor=1)))
    reach_all(make_mesh(MeshConfig(data=-1)))
