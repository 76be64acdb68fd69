"""One training step: gradients, update, average, and the numbers to report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from transfusion_jax.config import Config
from transfusion_jax.parallel.sharding import batch_sharding
from transfusion_jax.training.optimizer import learning_rate
from transfusion_jax.training.state import State, abstract_state, optimizer_of
from transfusion_jax.training.task import Task

Reported = dict[str, jax.Array]


def make_step(task: Task, config: Config, mesh: Mesh) -> Callable[[State, Any], tuple[State, Reported]]:
    """A compiled `(state, batch) → (state, reported)`; it gives its input state's memory to the new one.

    A step whose loss or gradients are not finite leaves parameters, moments and average as they were; it keeps
    its number and its rows, and reports `skipped`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(task, config, mesh))

    def step(state: State, batch: Any) -> tuple[State, Reported]:
        return train_step(task, config, state, batch)

    compiled = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )

    def run(state: State, batch: Any) -> tuple[State, Reported]:
        with jax.set_mesh(mesh):
            return compiled(state, batch)

    return run


def train_step(task: Task, config: Config, state: State, batch: Any) -> tuple[State, Reported]:
    """The step as a pure function."""
    key = jax.random.fold_in(jax.random.key(config.seed), 1)  # 0 made the parameters
    gradients, metrics = task.gradients(state.params, batch, key, state.step)
    rate = learning_rate(config.optimizer, config.steps)(state.step)
    norm = optax.tree.norm(gradients)
    updates, moments = optimizer_of(task, config).update(gradients, state.optimizer, state.params)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    ema = average(state, params, config.optimizer.ema_decay)

    finite = jnp.isfinite(norm)
    new = State(state.step + 1, params, moments, ema)
    kept = State(state.step + 1, state.params, state.optimizer, state.ema)
    state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)

    means = {name: total / count for name, (total, count) in metrics.sums.items()}  # NaN where there was none
    return state, {
        "grad_norm": norm,
        "learning_rate": rate,
        "skipped": (~finite).astype(jnp.int32),
        **means,
        **metrics.counts,
    }


def average(state: State, params: Any, decay: float) -> Any:
    """The moving average of the parameters; early steps weigh more, so that it forgets the start."""
    if state.ema is None:
        return None
    now = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return jax.tree.map(lambda e, p: now * e + (1 - now) * p, state.ema, params)
