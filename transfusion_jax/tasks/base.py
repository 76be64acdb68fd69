"""`Task`: what the training loop needs to know of what it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from transfusion_jax.config import IMAGES, Config
from transfusion_jax.parallel.sharding import AxisNames

Params = Any
Batch = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Metrics:
    """What a step reports. Loss, sums and counts add up over the parts of a batch."""

    loss: Float[Array, ""]  # what was differentiated
    sums: dict[str, tuple[Shaped[Array, ""], Shaped[Array, ""]]]  # name: (sum, count), logged as the mean
    counts: dict[str, Shaped[Array, ""]]  # name: count, logged as it is
    row: Int[Any, " B"]  # the rows' numbers
    row_loss: Float[Array, " B"]  # each row's share of the loss


class Task(Protocol):
    """A model and its losses, as pure functions; the loop knows nothing else of them."""

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""
        ...

    def axes(self) -> AxisNames:
        """Named axes of each parameter, by its name."""
        ...

    def gradients(
        self, params: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Params, Metrics]:
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

    @property
    def parameters(self) -> int:
        """How many the network has that is trained."""
        ...

    def flops(self, counts: dict[str, float]) -> float:
        """Exact operations of the step that reported these counts."""
        ...


def accumulated_gradients(
    loss: Callable[[Params, Batch], tuple[jax.Array, Metrics]],
    params: Params,
    batch: Batch,
    parts: int,
    label: Callable[[tuple], str],
) -> tuple[Params, Metrics]:
    """Gradients of a loss that is a sum over rows, computed in `parts` parts one after the other.

    Those of parameters that `label` calls frozen are zero, and are not computed.
    """
    trained = jax.tree_util.tree_map_with_path(lambda path, p: None if label(path) == "frozen" else p, params)

    def of_trained(trained: Params, part: Batch) -> tuple[jax.Array, Metrics]:
        return loss(jax.tree.map(lambda t, p: p if t is None else t, trained, params, is_leaf=_is_none), part)

    gradients, metrics = _in_turn(jax.grad(of_trained, has_aux=True), trained, batch, parts)
    whole = jax.tree.map(lambda g, p: jnp.zeros_like(p) if g is None else g, gradients, params, is_leaf=_is_none)
    return whole, metrics


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _in_turn(
    gradient: Callable[[Params, Batch], tuple[Params, Metrics]], params: Params, batch: Batch, parts: int
) -> tuple[Params, Metrics]:
    """The sums of what a function of each part gives."""
    if parts == 1:
        return gradient(params, batch)

    def sums(part: Batch) -> tuple[Any, Any]:
        gradients, m = gradient(params, part)
        return (gradients, m.loss, m.sums, m.counts), (m.row, m.row_loss)

    def body(total: Any, part: Batch) -> tuple[Any, Any]:
        added, rows = sums(part)
        return jax.tree.map(jnp.add, total, added), rows

    pieces = in_parts(batch, parts)
    like = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], pieces))[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    (gradients, *total), rows = jax.lax.scan(body, zeros, pieces)
    return gradients, Metrics(*total, *joined(rows))


def in_parts(batch: Batch, parts: int) -> Batch:
    """The arrays of each part of the rows: every `parts`-th row is in one, so that devices share each."""

    def split(x: Shaped[Array, "B ..."]) -> Shaped[Array, "parts _ ..."]:
        rows, *rest = x.shape  # a model without latents has arrays of size 0, of which no -1 can be inferred
        return jnp.swapaxes(x.reshape(rows // parts, parts, *rest), 0, 1)

    return jax.tree.map(split, batch)


def joined(parts: Any) -> Any:
    """The inverse of `in_parts`."""

    def join(x: Shaped[Array, "parts _ ..."]) -> Shaped[Array, "B ..."]:
        count, rows, *rest = x.shape
        return jnp.swapaxes(x, 0, 1).reshape(count * rows, *rest)

    return jax.tree.map(join, parts)


def make_task(config: Config) -> Any:
    """The task of a model's config: what `model.images` names, a `families.ModelTask` unless a user added it."""
    return IMAGES[config.model.images](config)
