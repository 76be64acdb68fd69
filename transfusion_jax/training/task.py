"""`Task`: what the training loop needs to know of what it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

Params = Any
Batch = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Metrics:
    """What a step reports; both kinds add up over the parts of a batch."""

    sums: dict[str, tuple[jax.Array, jax.Array]]  # name: (sum, count), logged as the mean
    counts: dict[str, jax.Array]  # name: count, logged as it is


class Task(Protocol):
    """A model and its losses, as pure functions; the loop knows nothing else of them."""

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        ...

    def gradients(self, params: Params, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Params, Metrics]:
        """Gradients over the whole batch, like `params`, and what to report.

        Args:
            params: the parameters.
            batch: a pytree whose leaves lead with the rows of the global batch.
            key: the run's key; randomness must depend on it and on the rows' numbers alone.
            step: the number of the step, from 0.
        """
        ...

    def label(self, path: tuple) -> str:
        """Which optimizer a parameter belongs to: "adamw", or "frozen"."""
        ...

    def flops(self, counts: dict[str, float]) -> float:
        """Exact operations of the step that reported these counts."""
        ...


def accumulated_gradients(
    loss: Callable[[Params, Batch], tuple[jax.Array, Metrics]], params: Params, batch: Batch, parts: int
) -> tuple[Params, Metrics]:
    """Gradients of a loss that is a sum over rows, computed in `parts` parts one after the other.

    Each part takes every parts-th row, so that all devices have their share of it.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, batch)

    def split(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)

    def body(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    pieces = jax.tree.map(split, batch)
    like = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.scan(body, zeros, pieces)[0]
