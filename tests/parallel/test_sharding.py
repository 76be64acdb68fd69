import contextlib

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from helpers import tiny_config
from transfusion_jax.config import ConfigError, MeshConfig
from transfusion_jax.model.transfusion import Model
from transfusion_jax.parallel import devices
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import Rules, batch_sharding, is_split, local_rows, state_shardings
from transfusion_jax.parallel.tree import leaf_names
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.step.state import RunContext


def test_every_parameter_has_named_axes_and_the_large_ones_are_split():
    model = Model(tiny_config().model)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = state_shardings(model.abstract_params(), mesh, model.axes())
    specs = jax.tree.map(lambda s: s.spec, shardings)
    assert specs["embedding"] == P("tensor", ("fsdp", "context"))
    assert specs["trunk"]["layers"]["attention"]["query"] == P(None, ("fsdp", "context"), "tensor")
    assert specs["trunk"]["layers"]["mlp"]["down"] == P(None, "tensor", ("fsdp", "context"))
    assert specs["trunk"]["final_norm"]["scale"] == P(None)


def test_moments_and_average_are_split_as_their_parameter_is():
    config = tiny_config(model__modality_weights="untied", optimizer__frozen="text", optimizer__ema_decay=0.9)
    task, mesh = make_task(config), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = RunContext(task, config, mesh).abstract_state
    params = {name: leaf.sharding.spec for name, leaf in named(state.params)}
    for name, leaf in named([state.optimizer, state.ema]):
        if leaf.ndim:
            (spec,) = [spec for ending, spec in params.items() if name.endswith(f"/{ending}")]
            assert leaf.sharding.spec == spec
    assert state.guard.recent.sharding.spec == P(None, None)


def named(tree):
    return zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)


def test_a_leaf_without_axes_and_a_collision_are_refused():
    leaf = jax.ShapeDtypeStruct((4, 4), np.float32)
    with pytest.raises(KeyError, match="bogus has 2 axes, and its names are None"):
        state_shardings({"bogus": leaf}, make_mesh(MeshConfig()), {})
    with pytest.raises(KeyError, match="bogus has 2 axes, and its names are"):
        state_shardings({"bogus": leaf}, make_mesh(MeshConfig()), {"bogus": ("width",)})
    with pytest.raises(ValueError, match="collide"):
        Rules(width="tensor").spec(("width", "heads"))


@pytest.mark.parametrize("mesh", [None, dict(data=2), dict(data=1, context=2)])
def test_an_axis_is_split_where_the_mesh_in_scope_splits_it(mesh):
    with jax.set_mesh(make_mesh(MeshConfig(**mesh), jax.devices()[:2])) if mesh else contextlib.nullcontext():
        found = {name for name in ("batch", "elements", "norm", "patch") if is_split(name)}
    assert found == {None: set(), "data": {"batch"}, "context": {"elements"}}[mesh and list(mesh)[-1]]


def test_the_mesh_covers_the_devices_or_says_that_it_does_not():
    assert dict(make_mesh(MeshConfig(data=-1, fsdp=2)).shape) == {"data": 4, "fsdp": 2, "context": 1, "tensor": 1}
    with pytest.raises(ConfigError, match="does not cover 8 devices"):
        make_mesh(MeshConfig(data=2, fsdp=2))
    with pytest.raises(ConfigError, match="do not divide 8 devices"):
        make_mesh(MeshConfig(fsdp=3))


def test_one_process_reads_every_row():
    assert local_rows(batch_sharding(make_mesh(MeshConfig(data=2, fsdp=4))), 16) == slice(0, 16)
    part = NamedSharding(make_mesh(MeshConfig(data=1), jax.devices()[:1]), P())
    assert local_rows(part, 6) == slice(0, 6)


def test_cpu_beside_an_accelerator_is_refused_unless_told(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS")
    devices.check_backend(allow_cpu=False)  # none is visible here
    card = tmp_path / "nvidia0"
    card.touch()
    monkeypatch.setattr(devices, "ACCELERATOR_FILES", (str(card),))
    with pytest.raises(ConfigError, match=r"requirements/cuda.txt.*--allow-cpu"):
        devices.check_backend(allow_cpu=False)
    devices.check_backend(allow_cpu=True)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    devices.check_backend(allow_cpu=False)


def test_the_devices_are_named():
    assert devices.describe_devices().startswith("backend cpu, 8 device(s)")
