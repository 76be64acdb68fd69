import os
from pathlib import Path

import jax
import pytest

from helpers import tiny_batch, tiny_config
from transfusion_jax import config as configs
from transfusion_jax.config import MeshConfig
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import batch_sharding
from transfusion_jax.planning import topology as topologies
from transfusion_jax.planning.memory import abstract_mesh, leaves, state_shapes, state_sizes
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.loop import to_global
from transfusion_jax.training.step.state import RunContext, create_state

CONFIGS = Path(__file__).parents[2] / "configs"
GOLDEN = Path(__file__).parents[1] / "golden" / "shardings"
SIZES = ("0.16b", "0.37b", "0.76b", "1.4b", "7b")
MESHES = {  # every axis stands in one of them
    "v5e:16x16": dict(fsdp=256),
    "v5p:4x4x4": dict(fsdp=16, context=2, tensor=2),
    "v6e:16x16": dict(data=8, fsdp=32),
}


@pytest.mark.parametrize("topology", MESHES)
@pytest.mark.parametrize("size", SIZES)
def test_every_leaf_lies_where_it_did(size, topology):
    mesh = abstract_mesh(MESHES[topology])
    assert mesh.size == topologies.parse_topology(topology).chips
    config = configs.load(f"{CONFIGS}/paper.py:{size}")
    task = TransfusionTask(config)
    shapes = state_shapes(task, config)
    axes = " × ".join(f"{axis} {n}" for axis, n in dict(mesh.shape).items())
    lines = [f"mesh {axes}; array, whole shape, how it is split, bytes per device"]
    lines += [leaf.line() for leaf in leaves(task, shapes, mesh)]
    path = GOLDEN / f"paper-{size}-{topology.replace(':', '-')}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text("\n".join(lines) + "\n")
    expected = path.read_text().splitlines() if path.is_file() else []
    assert lines == expected, (
        f"shardings are not what {path.name} says; if this is meant, run UPDATE_GOLDEN=1 pytest {__file__}"
    )


def test_the_bytes_are_those_of_real_arrays():
    config = tiny_config(batch_rows=8, mesh=dict(data=2, fsdp=2, tensor=2))
    mesh, task = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), TransfusionTask(config)
    counted = state_sizes(task, state_shapes(task, config), config, abstract_mesh(dict(mesh.shape))).by_kind
    state = create_state(RunContext(task, config, mesh))
    batch = to_global(tiny_batch(config), batch_sharding(mesh))
    real = {"parameters": state.params, "optimizer moments": state.optimizer, "average": state.ema, "batch": batch}
    for kind, tree in real.items():
        arrays = jax.tree.leaves(tree)
        assert counted[kind] == sum(a.addressable_shards[0].data.nbytes for a in arrays), kind
