"""The training state, which is everything that a step changes, and what the run that it belongs to is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from transfusion_jax.config import Run
from transfusion_jax.parallel.sharding import AxisNames, state_shardings
from transfusion_jax.tasks.base import Task
from transfusion_jax.training.step import bad_step_guard
from transfusion_jax.training.step.bad_step_guard import Guard, new_guard
from transfusion_jax.training.step.optimizer import make_optimizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Steps done, parameters, optimizer moments, the parameters' average where one is kept, and the guard."""

    step: jax.Array  # int32
    params: Any
    optimizer: Any
    ema: Any  # like params, or None
    guard: Guard


def optimizer_of(task: Task, config: Run) -> optax.GradientTransformation:
    """The optimizer of a run."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return make_optimizer(config.optimizer, task.label, shapes, task.axes())


def new_state(task: Task, config: Run) -> State:
    """The state before the first step; a function of the config's seed alone."""
    params = task.init(jax.random.key(config.seed))
    ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
    return State(jnp.int32(0), params, optimizer_of(task, config).init(params), ema, new_guard(config.guard))


def state_axes(task: Task) -> AxisNames:
    """Named axes of the state's arrays, for `state_shardings`."""
    return {**task.axes(), **bad_step_guard.AXES}


@dataclass(frozen=True, eq=False)
class RunContext:
    """What a run is made of: built once, and passed whole to whatever needs some of it."""

    task: Task
    config: Run
    mesh: Mesh
    facts: Mapping[str, Any] = field(default_factory=dict)  # what manifests say of the run; see `facts_of`
    log: Callable[[str], None] = print  # prints a line for the user

    @cached_property
    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state, allocating nothing."""
        shapes = jax.eval_shape(lambda: new_state(self.task, self.config))
        shardings = state_shardings(shapes, self.mesh, state_axes(self.task))
        return jax.tree.map(lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings)

    @property
    def shardings(self) -> Any:
        """Where each leaf of the state lives: a tree like it."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)


def create_state(context: RunContext) -> State:
    """The state before the first step, made on its devices in one program."""
    with jax.set_mesh(context.mesh):
        make = jax.jit(lambda: new_state(context.task, context.config), out_shardings=context.shardings)
        return make()
