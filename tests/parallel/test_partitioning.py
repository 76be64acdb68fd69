"""What XLA's partitioner makes of a step: it says so where it can only gather a tensor and cut it again."""

import subprocess
import sys

import pytest

from helpers import GROUPED

COMPILE = """
import sys
sys.path.insert(0, "tests")
import jax
from helpers import tiny_config
from transfusion_jax.data.batch import abstract_batch
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.training.step.state import RunContext
from transfusion_jax.training.step.step import step_program
from transfusion_jax.tasks.transfusion import TransfusionTask

config = tiny_config(batch_rows=8, mesh={mesh}, **{more})
task, mesh = TransfusionTask(config), make_mesh(config.mesh)
with jax.set_mesh(mesh):
    flags = jax.ShapeDtypeStruct((8,), bool)
    state = RunContext(task, config, mesh).abstract_state
    step_program(RunContext(task, config, mesh)).lower(state, abstract_batch(config), flags).compile()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "more"),
    [
        (dict(data=2, context=2, tensor=2), {}),
        (dict(data=1, fsdp=2, context=4), {}),
        (dict(data=2, fsdp=2, tensor=2), dict(accumulation=2)),
        *((dict(data=2, context=2, tensor=2), changes) for changes in GROUPED.values()),
    ],
    ids=str,
)
def test_no_activation_is_gathered_to_be_split_again(mesh, more):
    script = COMPILE.format(mesh=mesh, more=more)
    compiled = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert compiled.returncode == 0, compiled.stderr
    assert "Involuntary full rematerialization" not in compiled.stderr
