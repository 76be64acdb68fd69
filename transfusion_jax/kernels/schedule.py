"""What a kernel does one after the other: the list of the pairs of blocks that spans touch, made at run time.

The pairs of all rows stand in one list, so that a grid over it has no empty steps, however much rows differ. The
list goes through the outer blocks in order, and for each through its inner blocks: forward, queries are the outer
ones; backward, keys are. Its array has room for all pairs, and a number says how many of them there are.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transfusion_jax.kernels.block_ranges import inner_ranges, key_ranges, query_ranges


def plan_steps(
    spans: jax.Array, query_block: int, key_block: int, keys: int, outer: str
) -> tuple[Steps, jax.Array]:
    """The steps of all rows, row after row, and how many there are.

    Args:
        spans: `[B, 2, Tq]`, starts and ends, in whole query blocks.
        query_block, key_block: elements per block.
        keys: how many there are, in whole key blocks.
        outer: which blocks are the tiles: "query" or "key".
    """
    start, end = spans[:, 0], spans[:, 1]
    by_query = key_ranges(start, end, query_block, key_block)
    by_key = query_ranges(by_query, keys // key_block)
    ranges = by_query if outer == "query" else by_key
    inner = inner_ranges(start, end, query_block, key_block)
    most = by_query.begin.size * (keys // key_block)
    # A key block that no query sees still has a step, at any query block, in which its zeros are written.
    begin = jnp.minimum(ranges.begin, most // ranges.begin.size - 1)
    end = begin + ranges.end - ranges.begin
    flat = [jnp.reshape(x, -1) for x in (begin, end, by_query.begin, *inner)]
    count = jnp.maximum(flat[1] - flat[0], 1)
    past = jnp.cumsum(count)
    tile = jnp.repeat(jnp.arange(len(count), dtype=jnp.int32), count, total_repeat_length=most)
    return Steps(tile, past - count, *flat), past[-1]


class Steps(NamedTuple):
    """The list, as flat int32 arrays (or references to them). A tile is one outer block of one row."""

    tile: jax.Array  # of each step
    first: jax.Array  # the step at which each tile begins
    begin: jax.Array  # the inner blocks of each tile
    end: jax.Array
    keys_begin: jax.Array  # the first key block of each query block
    inner_begin: jax.Array  # the key blocks of each query block that need no mask
    inner_end: jax.Array

    def at(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The tile and the inner block of a step."""
        tile = self.tile[step]
        return tile, self.begin[tile] + step - self.first[tile]
