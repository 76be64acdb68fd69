"""Keys and values of elements that were seen before.

Every row has as many as its own length says, so that rows of any lengths go on together. New elements attend to
what is held and to one another, and are added afterwards: a step of denoising adds none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transfusion_jax.config import ModelConfig
from transfusion_jax.kernels.platform import compute_dtype


class Past(NamedTuple):
    """A layer's keys and values, heads before elements."""

    keys: Float[Array, "B K _ D"]
    values: Float[Array, "B K _ D"]

    @classmethod
    def of(cls, keys: Float[Array, "B T K D"], values: Float[Array, "B T K D"]) -> Past:
        """From elements before heads."""
        return cls(jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2))


class Cache(NamedTuple):
    """What is held of each row: the first `length` of the S elements there is room for."""

    past: tuple[Past, ...]  # of each layer
    length: Int[Array, " B"]
    position: Int[Array, " B"]  # of the next element; with one axis of positions it is the length

    @classmethod
    def empty(cls, config: ModelConfig, rows: int, size: int) -> Cache:
        """Room for `size` elements per row, with nothing in it; of size 0, it asks only for what may be added."""
        zeros = jnp.zeros((rows, config.key_value_heads, size, config.head_channels), compute_dtype(config))
        return cls((Past(zeros, zeros),) * config.layers, *[jnp.zeros(rows, jnp.int32)] * 2)

    @property
    def size(self) -> int:
        """S."""
        return self.past[0].keys.shape[-2]

    def of_layer(self, number: int) -> Cache:
        """One layer's alone."""
        return Cache(self.past[number : number + 1], self.length, self.position)

    def append(
        self,
        present: tuple[Past, ...],
        count: Int[Any, " B"] | int,
        hidden: Float[Array, "B T W"],
        advance: Int[Any, " B"] | int | None = None,
    ) -> Cache:
        """With the first `count` of T new elements added to each row.

        What lies beyond the length means nothing and is overwritten later; what finds no room is dropped.

        Args:
            present: the new elements' keys and values.
            count: how many of them stay.
            hidden: what the trunk made of them.
            advance: how many positions they take; by default as many as they are.
        """
        rows, _, new, _ = present[0].keys.shape
        # In a loop, XLA copies the whole cache twice unless the position to write to depends on all that is read.
        # It removes an optimization barrier before it inserts copies. This is always 0, which XLA cannot derive.
        zero = jnp.minimum(jnp.isnan(hidden[:, :1, 0]).astype(jnp.int32), 0)
        row, place = jnp.arange(rows)[:, None], self.length[:, None] + zero + jnp.arange(new)

        def write(held: Float[Array, "B K S D"], added: Float[Array, "B K T D"]) -> Float[Array, "B K S D"]:
            by_place = jnp.swapaxes(added, 1, 2).astype(held.dtype)  # the indexed axes come first
            return held.at[row, :, place].set(by_place, mode="drop", unique_indices=True)

        position = self.position + (count if advance is None else advance)
        return Cache(jax.tree.map(write, self.past, present), self.length + count, position)

    def rows(self, index: Int[Array, " R"], size: int) -> Cache:
        """Some of the rows, with room for `size` elements, which must hold all that they have."""

        def part(held: Float[Array, "B K _ D"]) -> Float[Array, "R K _ D"]:
            chosen = held[index, :, :size]
            return jnp.pad(chosen, [(0, size - n if axis == 2 else 0) for axis, n in enumerate(chosen.shape)])

        return Cache(jax.tree.map(part, self.past), self.length[index], self.position[index])
