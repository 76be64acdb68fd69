"""Where weights that are only read lie."""

import pytest

from helpers import tiny_config
from transfusion_jax.commands.common.load_model import measuring_mesh
from transfusion_jax.tasks.base import make_task


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, dict(data=8, fsdp=1)),  # data=-1
        (dict(mesh__data=1), dict(data=1, fsdp=8)),  # it was trained on one device
        (dict(mesh__data=1, model__width=36), dict(data=8, fsdp=1)),  # eight do not divide this width
        (dict(mesh__data=2, mesh__fsdp=4), dict(data=2, fsdp=4)),
    ],
)
def test_the_devices_are_shared_as_in_training_where_they_can(changes, expected):
    mesh = measuring_mesh(make_task(tiny_config(**(dict(batch_rows=8, mesh__data=-1) | changes))))
    assert {axis: mesh.shape[axis] for axis in expected} == expected
