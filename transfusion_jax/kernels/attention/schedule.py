"""Which blocks of queries and of keys meet under a span mask, and the list of those pairs for a kernel.

A kernel handles a block of queries and a block of keys at a time, and a pair of blocks matters only where some span
touches it. Starts and ends never decrease, and each span holds its own element, so neighbouring spans overlap or
adjoin: a block of queries together sees one stretch of keys, from its first start to its last end. The key blocks
that it touches are therefore one contiguous range, known from two numbers, and so are the query blocks that touch a
block of keys. Nothing here is larger than a number per pair of blocks.

The ranges' functions take NumPy or JAX arrays and return the same kind. Spans are `[B, T]` int32, in key positions;
their queries may stand anywhere among the keys. T need not be a multiple of the block: the last block is then a
short one.

`plan_steps` lists the pairs of all rows, at run time, so that a grid over the list has no empty steps, however much
rows differ. The list goes through the outer blocks in order, and for each through its inner blocks: forward,
queries are the outer ones; backward, keys are. Its array has room for all pairs, and a number says how many there
are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


class Ranges(NamedTuple):
    """For each block, the blocks `[begin, end)` that it meets, of each row; never decreasing."""

    begin: Int[Any, "B _"]
    end: Int[Any, "B _"]


class BlockCounts(NamedTuple):
    """Pairs of a query block and a key block, summed over rows."""

    visited: int  # by a kernel that keeps to `key_ranges`
    touched: int  # by at least one span
    causal: int  # by the triangle under the diagonal
    dense: int  # all


def key_ranges(start: Int[Any, "B T"], end: Int[Any, "B T"], query_block: int, key_block: int) -> Ranges:
    """The key blocks that each query block touches: exactly those, and never none."""
    first, last = _ends(start.shape[1], query_block)
    return Ranges(start[:, first] // key_block, -(-end[:, last] // key_block))


def inner_ranges(start: Int[Any, "B T"], end: Int[Any, "B T"], query_block: int, key_block: int) -> Ranges:
    """The key blocks wholly inside all spans of each query block: these need no mask. None where `end ≤ begin`."""
    first, last = _ends(start.shape[1], query_block)
    return Ranges(-(-start[:, last] // key_block), end[:, first] // key_block)


def query_ranges(keys: Ranges, key_blocks: int) -> Ranges:
    """The query blocks that touch each key block, from `key_ranges`; `begin = end` where none does."""
    block = np.arange(key_blocks, dtype=np.int32)[:, None]
    begin = (keys.end[:, None] <= block).sum(-1, dtype=np.int32)
    return Ranges(begin, (keys.begin[:, None] <= block).sum(-1, dtype=np.int32))


def count_blocks(
    start: Int[np.ndarray, "B T"], end: Int[np.ndarray, "B T"], query_block: int, key_block: int, keys: int
) -> BlockCounts:
    """What a kernel visits, beside what it must and what simpler masks would; on the host, for reports and tests.

    Args:
        start, end: spans `[B, T]`.
        query_block, key_block: elements per block.
        keys: how many there are; as in a row of its own, query i stands at key i.
    """
    rows, queries = start.shape
    query_blocks, key_blocks = -(-queries // query_block), -(-keys // key_block)
    visited = key_ranges(start, end, query_block, key_block)
    # Each query adds one from its first key block on and takes it back after its last; their order is not used.
    changes = np.zeros((rows, query_blocks, key_blocks + 1), np.int32)
    row, query = np.indices(start.shape)
    np.add.at(changes, (row, query // query_block, start // key_block), 1)
    np.add.at(changes, (row, query // query_block, -(-end // key_block)), -1)
    _, last = _ends(queries, query_block)
    return BlockCounts(
        visited=int((visited.end - visited.begin).sum()),
        touched=int((changes.cumsum(-1) > 0).sum()),
        causal=rows * int((last // key_block + 1).sum()),
        dense=rows * query_blocks * key_blocks,
    )


def plan_steps(
    spans: Int[Array, "B 2 T"], query_block: int, key_block: int, keys: int, outer: str
) -> tuple[BlockSteps, Int[Array, ""]]:
    """The steps of all rows, row after row, and how many there are.

    Args:
        spans: starts and ends, in whole query blocks.
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
    return BlockSteps(tile, past - count, *flat), past[-1]


class BlockSteps(NamedTuple):
    """The list, as flat int32 arrays (or references to them). A tile is one outer block of one row."""

    tile: Int[Any, " steps"]  # of each step
    first: Int[Any, " tiles"]  # the step at which each tile begins
    begin: Int[Any, " tiles"]  # the inner blocks of each tile
    end: Int[Any, " tiles"]
    keys_begin: Int[Any, " query_tiles"]  # the first key block of each query block
    inner_begin: Int[Any, " query_tiles"]  # the key blocks of each query block that need no mask
    inner_end: Int[Any, " query_tiles"]

    def at(self, step: Int[Any, "*some"]) -> tuple[Int[Any, "*some"], Int[Any, "*some"]]:
        """The tile and the inner block of a step."""
        tile = self.tile[step]
        return tile, self.begin[tile] + step - self.first[tile]


def _ends(queries: int, block: int) -> tuple[Int[np.ndarray, " blocks"], Int[np.ndarray, " blocks"]]:
    """The first and the last query of each block."""
    first = np.arange(0, queries, block)
    return first, np.minimum(first + block, queries) - 1
