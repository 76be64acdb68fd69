"""One training step: gradients, verdict, update, average, and what to report."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transfusion_jax.config import Run
from transfusion_jax.parallel.sharding import batch_sharding
from transfusion_jax.tasks.base import Task
from transfusion_jax.training.step.bad_step_guard import FINE, halted, judge_step
from transfusion_jax.training.step.optimizer import learning_rate
from transfusion_jax.training.step.state import RunContext, State, optimizer_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Report:
    """What a step says of itself; every process holds all of it."""

    values: dict[str, jax.Array]  # the numbers to log
    verdict: jax.Array  # an entry of `guard.VERDICTS`
    in_a_row: jax.Array  # bad steps since the last accepted one
    leaf_squares: jax.Array  # each gradient's sum of squares, in the order of the parameters' leaves
    row: jax.Array  # the rows' numbers, [B]
    row_loss: jax.Array  # each row's share of the loss, [B]
    asked_to_end: jax.Array | None = None  # whether any process was asked to, when it sent off the step


@dataclass(frozen=True)
class Step:
    """A compiled `(state, batch, asked_to_end=False) → (state, report)`.

    It gives its input state's memory to the new one. `asked_to_end` is this process's own word; the report has that
    of all, so that they end after the same step.
    """

    program: Any  # of `step_program`
    flags: Callable[[bool], jax.Array]
    mesh: Mesh

    def __call__(self, state: State, batch: Any, asked_to_end: bool = False) -> tuple[State, Report]:
        """Sends the step off."""
        with jax.set_mesh(self.mesh):
            return self.program(state, batch, self.flags(asked_to_end))

    def bytes_used(self, state: State, batch: Any) -> float:
        """Of one device, once the step has run: the most so far; where that is not counted, what XLA reserves."""
        stats = self.mesh.local_devices[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            return float(stats["peak_bytes_in_use"])
        with jax.set_mesh(self.mesh):  # compiled it is already: JAX keeps programs by their arguments' shapes
            memory: Any = self.program.lower(state, batch, self.flags(False)).compile().memory_analysis()
        return float(memory.argument_size_in_bytes + memory.temp_size_in_bytes)


def make_step(context: RunContext) -> Step:
    """The step of a run."""
    mesh = context.mesh

    @functools.cache
    def flags(value: bool) -> jax.Array:
        return jax.make_array_from_callback((mesh.size,), _every_device(mesh), lambda index: np.full(1, value))

    return Step(step_program(context), flags, mesh)


def step_program(context: RunContext) -> Any:
    """The jitted `(state, batch, flags) → (state, report)`, `flags` being a bool for each device of the mesh."""
    mesh, shardings = context.mesh, context.shardings

    def step(state: State, batch: Any, asked: jax.Array) -> tuple[State, Report]:
        state, report = train_step(context.task, context.config, state, batch)
        return state, replace(report, asked_to_end=jnp.any(asked))

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh), _every_device(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )


def _every_device(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P(mesh.axis_names))


def train_step(task: Task, config: Run, state: State, batch: Any) -> tuple[State, Report]:
    """The step as a pure function.

    A bad step (see `guard`) changes nothing but the step's number. Once the guard has halted the run, not even
    that changes: steps that were sent off before the host knew are as if they had not been.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), 1)  # 0 made the parameters
    gradients, metrics = task.gradients(state.params, batch, key, state.step)
    rate = learning_rate(config.optimizer, config.steps)(state.step)
    squares = jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)])
    norm = jnp.sqrt(jnp.sum(squares))
    verdict, guard = judge_step(config.guard, state.guard, metrics.loss, norm)
    updates, moments = optimizer_of(task, config).update(gradients, state.optimizer, state.params)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    ema = average(state, params, config.optimizer.ema_decay)

    stopped = halted(config.guard, state.guard)
    taken = (verdict == FINE) & ~stopped
    new = State(state.step, params, moments, ema, guard)
    kept = State(state.step, state.params, state.optimizer, state.ema, guard)
    after = jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, kept)
    counted = jax.tree.map(lambda a, b: jnp.where(stopped, a, b), state.guard, guard)
    after = State(state.step + ~stopped, after.params, after.optimizer, after.ema, counted)

    means = {name: total / count for name, (total, count) in metrics.sums.items()}  # NaN where there was none
    bearing = sum(count for _, count in metrics.sums.values())
    values = {
        "loss": jnp.where(bearing > 0, metrics.loss, jnp.nan),
        "grad_norm": norm,
        "learning_rate": rate,
        "skipped_steps": counted.skipped,
        **means,
        **metrics.counts,
    }
    return after, Report(values, verdict, counted.in_a_row, squares, metrics.row, metrics.row_loss)


def average(state: State, params: Any, decay: float) -> Any:
    """The moving average of the parameters; early steps weigh more, so that it forgets the start."""
    if state.ema is None:
        return None
    now = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return optax.incremental_update(params, state.ema, 1 - now)
