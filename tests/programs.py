"""Programs that runs of one process share: what one has traced and compiled, others of its config use."""

import dataclasses
import functools
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import jax

from transfusion_jax.config.base import LoopConfig
from transfusion_jax.parallel import devices
from transfusion_jax.training import run, start_run
from transfusion_jax.training.step import step
from transfusion_jax.training.step.state import RunContext, create_state


@contextmanager
def shared():
    """Runs within it begin with kept states and step by kept programs; a device's peak is measured once."""
    replaced = [
        (run, "create_state", state_of),
        (start_run, "create_state", state_of),
        (step, "step_program", step_program_of),
        (RunContext, "abstract_state", property(abstract_state_of)),
        (devices, "measured_peak", peak),
    ]
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        yield


def kept(make):
    """What a function of a run's context returns, made once for each config and mesh."""
    made = {}

    def find(context):
        config = repr(dataclasses.replace(context.config, loop=LoopConfig()))
        key = type(context.task).gradients, config, context.mesh  # a test may replace the gradients
        if key not in made:
            made[key] = make(context)
        return made[key]

    return find


peak = functools.cache(devices.measured_peak)
abstract_state_of = kept(RunContext.__dict__["abstract_state"].func)
step_program_of = kept(step.step_program)
first_state_of = kept(lambda context: jax.device_get(create_state(context)))


def state_of(context):
    """Arrays of the run's own: its first step gives their memory away."""
    return jax.device_put(first_state_of(context), context.shardings, may_alias=False)


def begun(context):
    """The state before the first step, and the step."""
    with shared():
        return state_of(context), step.make_step(context)
