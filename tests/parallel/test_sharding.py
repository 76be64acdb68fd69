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
from transfusion_jax.parallel.sharding import Rules, axis_names, batch_sharding, local_rows, state_shardings


def test_every_parameter_has_named_axes_and_the_large_ones_are_split():
    params = Model(tiny_config().model).abstract_params()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = state_shardings(params, mesh)
    for path, leaf in jax.tree.leaves_with_path(params):
        assert len(axis_names(path, leaf.ndim)) == leaf.ndim
    specs = jax.tree.map(lambda s: s.spec, shardings)
    assert specs["embedding"] == P("tensor", ("fsdp", "context"))
    assert specs["trunk"]["layers"]["attention"]["query"] == P(None, ("fsdp", "context"), "tensor")
    assert specs["trunk"]["layers"]["mlp"]["down"] == P(None, "tensor", ("fsdp", "context"))
    assert specs["trunk"]["final_norm"]["scale"] == P(None)


def test_an_unknown_leaf_and_a_collision_are_refused():
    with pytest.raises(KeyError, match="add 'bogus' to PARAMETER_AXES"):
        state_shardings({"bogus": jax.ShapeDtypeStruct((4, 4), np.float32)}, make_mesh(MeshConfig()))
    with pytest.raises(ValueError, match="collide"):
        Rules(width="tensor").spec(("width", "heads"))


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
