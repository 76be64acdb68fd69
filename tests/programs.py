"""Programs that runs of one process share: what one has traced and compiled, others of its config use."""

import dataclasses
import functools
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import jax

from transfusion_jax import flops
from transfusion_jax.config.base import LoopConfig
from transfusion_jax.training import loop, start_run
from transfusion_jax.training.step import step


@contextmanager
def shared():
    """Runs within it begin with kept states and step by kept programs; a device's peak is measured once."""
    replaced = [
        (loop, "create_state", state_of),
        (start_run, "create_state", state_of),
        (loop, "abstract_state", abstract_state_of),
        (start_run, "abstract_state", abstract_state_of),
        (step, "abstract_state", abstract_state_of),
        (step, "step_program", step_program_of),
        (flops, "measured_peak", peak),
    ]
    with ExitStack() as stack:
        for module, name, function in replaced:
            stack.enter_context(patch.object(module, name, function))
        yield


def kept(make):
    """What a function of a task, a config and a mesh returns, made once for each config."""
    made = {}

    def find(task, config, mesh):
        key = (
            type(task).gradients,
            repr(dataclasses.replace(config, loop=LoopConfig())),
            mesh,
        )  # a test may replace it
        if key not in made:
            made[key] = make(task, config, mesh)
        return made[key]

    return find


peak = functools.cache(flops.measured_peak)
abstract_state_of = kept(loop.abstract_state)
step_program_of = kept(step.step_program)
first_state_of = kept(lambda *run, make=loop.create_state: jax.device_get(make(*run)))


def state_of(task, config, mesh):
    """Arrays of the run's own: its first step gives their memory away."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state_of(task, config, mesh))
    return jax.device_put(first_state_of(task, config, mesh), shardings, may_alias=False)
