import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from helpers import tiny_config
from transfusion_jax.config import ConfigError
from transfusion_jax.parallel import placement
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.step.state import RunContext, create_state


def test_a_state_is_where_its_rules_say_and_a_replica_is_found():
    config = tiny_config(mesh=dict(data=1, fsdp=4, tensor=2))
    task, mesh = TransfusionTask(config), make_mesh(config.mesh)
    state, abstract = create_state(RunContext(task, config, mesh)), RunContext(task, config, mesh).abstract_state
    placement.check_placement(state, abstract)
    whole = jax.device_put(state.params["text_head"], NamedSharding(mesh, P()))
    moved = state.params | {"text_head": whole}
    with pytest.raises(ConfigError, match="params/text_head is"):
        placement.check_placement({"params": moved}, {"params": abstract.params})


def test_bytes_per_device_are_counted_by_part():
    mesh = make_mesh(tiny_config(mesh=dict(data=2, fsdp=4)).mesh)
    split = jax.device_put(jnp.zeros((1024, 1024)), NamedSharding(mesh, P("fsdp")))
    copies = jax.device_put(jnp.zeros((512, 1024)), NamedSharding(mesh, P()))
    assert placement.bytes_per_device(split) == 2**20
    lines = placement.describe_placement({"parameters": [split, copies], "average": None})
    assert lines[1].split() == ["parameters", "3.0", "MiB", "6.0", "MiB"]
    assert len(lines) == 2
    assert placement.unsplit({"a": split, "b": copies}) == {"b": 2**21}
