"""Span attention for NVIDIA GPUs in Pallas on Triton: online softmax over exactly the blocks that spans touch.

A program keeps one block and visits others in a loop. Forward, and for the gradient of q, it keeps a block of
queries and visits keys; for the gradients of k and v it keeps a block of keys and visits queries. It visits the
ranges of `schedule.py`, computed from the spans at run time, and only the two ends of a range need a mask. No two
programs add to one sum, so results repeat to the last bit. The method is FlashAttention's (arXiv 2205.14135,
2307.08691).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from transfusion_jax.kernels.attention.schedule import Ranges, inner_ranges, key_ranges, query_ranges
from transfusion_jax.kernels.platform import compute_capability, platform
from transfusion_jax.kernels.spans import LOG2_E, MASKED, float32_dot, named, output_products, whole_spans

DTYPES = ("float32", "bfloat16", "float16")
MOST_CHANNELS = 128
FEWEST_CHANNELS = 16  # of a product in Triton
OLDEST = 8.0  # compute capability, Ampere's: XLA compiles Triton for no older one


@dataclass(frozen=True)
class Tile:
    """Elements of the block that a program keeps and of those that it visits (powers of two), and how it runs."""

    kept: int
    visited: int
    warps: int = 4
    stages: int = 1  # visited blocks on their way from memory at a time


@dataclass(frozen=True)
class Tiles:
    """Of the forward pass, and of both programs of the backward pass."""

    forward: Tile
    backward: Tile


# By channels per head and bytes per value; benchmarks/gpu_compile.py says how far each fills a GPU's memories.
TILES = {
    (64, 2): Tiles(Tile(128, 64, warps=8, stages=3), Tile(64, 64, warps=4, stages=3)),
    (128, 2): Tiles(Tile(128, 64, warps=8, stages=2), Tile(64, 64, warps=8, stages=2)),
    (64, 4): Tiles(Tile(64, 32, warps=8), Tile(32, 32, warps=8)),
    (128, 4): Tiles(Tile(32, 32, warps=8), Tile(16, 16, warps=8)),
}


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
) -> Float[Array, "B T H D"]:
    """See `transfusion_jax.model.attention`; raises ValueError where the kernels do not run, too."""
    if elsewhere := why_not_here():
        raise ValueError(f"attention 'gpu' runs on {elsewhere}; model.attention='blocked' runs anywhere")
    return gpu_span_attention(q, k, v, start, end)


def gpu_span_attention(
    q: Float[Any, "B T H D"],
    k: Float[Any, "B S K D"],
    v: Float[Any, "B S K D"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> Float[Array, "B T H D"]:
    """Softmax attention of each query over the keys `[start, end)`, scaled by 1/√D; differentiable in q, k and v.

    Args:
        q: with D ≤ 128, float32, bfloat16 or float16. Channels are padded to a power of two.
        k, v: of the same dtype; K divides H.
        start, end: in key positions, keeping the contract of spans: neither ever decreases, and
            consecutive queries' spans hold consecutive keys. The queries may stand anywhere among the keys.
        tiles: sizes of the blocks; by default those of `TILES`.
        interpret: run by Pallas's interpreter on any backend, slowly, for tests.

    Returns:
        Of each query, in the dtype of q; products are accumulated, and the softmax taken, in float32.

    Raises:
        ValueError: the kernel cannot take these arguments; the message says why and what can.
    """
    _check_support(q, k, v)
    queries, channels = q.shape[1], q.shape[3]
    whole_channels = max(FEWEST_CHANNELS, pl.next_power_of_2(channels))
    tiles = tiles or TILES[max(whole_channels, 64), q.dtype.itemsize]
    query_block = math.lcm(tiles.forward.kept, tiles.backward.kept, tiles.backward.visited)
    key_block = math.lcm(tiles.forward.visited, tiles.backward.kept, tiles.backward.visited)

    def whole(x: Float[Array, "B _ H _"], block: int) -> Float[Array, "B _ H _"]:
        return jnp.pad(x, [(0, 0), (0, -x.shape[1] % block), (0, 0), (0, whole_channels - channels)])

    arrays = whole(q, query_block), whole(k, key_block), whole(v, key_block)
    spans = whole_spans(start, end, query_block)
    out = _attention(*arrays, spans, tiles, 1 / math.sqrt(channels), interpret)
    return out[:, :queries, :, :channels]


def why_not_here() -> str | None:
    """What the kernels run on, and what this is instead; None where they run."""
    if platform() != "cuda":
        return f"NVIDIA GPUs, not on {platform()}"
    capability = compute_capability()
    if capability is not None and capability < OLDEST:
        return f"NVIDIA GPUs of compute capability {OLDEST} (Ampere) and later, not on {capability}"
    return None


def _check_support(q: Float[Any, "B T H D"], k: Float[Any, "B S K D"], v: Float[Any, "B S K D"]) -> None:
    if q.dtype.name not in DTYPES or {k.dtype, v.dtype} != {q.dtype}:
        reason = f"arrays of one dtype of {', '.join(DTYPES)}, not {q.dtype}, {k.dtype} and {v.dtype}"
    elif q.shape[3] > MOST_CHANNELS:
        reason = f"heads of at most {MOST_CHANNELS} channels, not {q.shape[3]}"
    else:
        return
    raise ValueError(f"attention 'gpu' takes {reason}; model.attention='blocked' takes these")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    spans: Int[Array, "B 2 T"],
    tiles: Tiles,
    scale: float,
    interpret: bool,
) -> Float[Array, "B T H D"]:
    """The same in whole blocks, with starts and ends in one array."""
    return _forward(q, k, v, spans, tiles, scale, interpret)[0]


def _forward(q, k, v, spans, tiles, scale, interpret):  # type: ignore[no-untyped-def]
    tile = tiles.forward
    rows, queries, heads, _ = q.shape
    totals = jax.ShapeDtypeStruct((rows, heads, queries), jnp.float32)
    out, log_total = pl.pallas_call(
        functools.partial(_forward_kernel, scale=LOG2_E * scale, size=tile.visited),
        grid=(queries // tile.kept, heads, rows),
        in_specs=[_LIMITS, _lines(spans, tile), _vectors(q, tile), _shared(k, q), _shared(v, q)],
        out_specs=[_vectors(q, tile), _numbers(totals, tile)],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), totals],
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="span_attention_forward",
    )(_key_limits(spans, tile), spans, q, k, v)
    out, log_total = named(out, log_total)
    return out, (q, k, v, spans, out, log_total)


def _forward_kernel(limits, spans, q, k, v, out, log_total, *, scale, size):  # type: ignore[no-untyped-def]
    """The output of a block of queries."""
    queries, start, end = q[...], spans[0, :], spans[1, :]

    def visit(block: Any, carry: tuple, masked: bool) -> tuple:
        top, total, mixed = carry
        keys = pl.ds(block * size, size)
        scores = scale * float32_dot(queries, k[keys, :], 1, 1)
        if masked:
            scores = _masked(scores, block * size, start[:, None], end[:, None], 1)
        new_top = jnp.maximum(top, scores.max(1))
        weights, shrink = jnp.exp2(scores - new_top[:, None]), jnp.exp2(top - new_top)
        mixed = shrink[:, None] * mixed + float32_dot(weights.astype(v.dtype), v[keys, :], 1, 0)
        return new_top, shrink * total + weights.sum(1), mixed

    zeros = jnp.zeros(q.shape[0], jnp.float32)
    top, total, mixed = _visit(limits, visit, (zeros + MASKED, zeros, jnp.zeros(q.shape, jnp.float32)))
    out[...] = (mixed / total[:, None]).astype(out.dtype)
    log_total[...] = top + jnp.log2(total)


def _backward(tiles, scale, interpret, residuals, d_out):  # type: ignore[no-untyped-def]
    q, k, v, spans, out, log_total = residuals
    tile = tiles.backward
    rows, queries, heads, _ = q.shape
    delta = jnp.swapaxes(output_products(out, d_out, 3)[..., 0], 1, 2)
    options = dict(
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages), interpret=interpret
    )
    arrays = spans, q, k, v, d_out, log_total, delta

    of_queries = [_lines(spans, tile), _vectors(q, tile), _shared(k, q), _shared(v, q), _vectors(q, tile)]
    d_q = pl.pallas_call(
        functools.partial(_query_kernel, scale=scale, size=tile.visited),
        grid=(queries // tile.kept, heads, rows),
        in_specs=[_LIMITS, *of_queries, *[_numbers(delta, tile)] * 2],
        out_specs=_vectors(q, tile),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        name="span_attention_d_query",
        **options,
    )(_key_limits(spans, tile), *arrays)

    group = heads // k.shape[2]
    of_keys = [_lines(spans), _group(q, group), _vectors(k, tile), _vectors(v, tile), _group(q, group)]
    d_k, d_v = pl.pallas_call(
        functools.partial(_key_kernel, scale=scale, size=tile.visited),
        grid=(k.shape[1] // tile.kept, k.shape[2], rows),
        in_specs=[_LIMITS, *of_keys, *[_group_numbers(delta, group)] * 2],
        out_specs=[_vectors(k, tile)] * 2,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        name="span_attention_d_key",
        **options,
    )(_query_limits(spans, tile, k.shape[1]), *arrays)
    return d_q, d_k, d_v, None


def _query_kernel(  # type: ignore[no-untyped-def]
    limits, spans, q, k, v, d_out, log_total, delta, d_q, *, scale, size
):
    """The gradient of a block of queries."""
    queries, start, end, d_outs = q[...], spans[0, :], spans[1, :], d_out[...]
    log_totals, deltas = log_total[...][:, None], delta[...][:, None]

    def visit(block: Any, sum_q: Float[Array, "_ _"], masked: bool) -> Float[Array, "_ _"]:
        keys = pl.ds(block * size, size)
        scores = scale * LOG2_E * float32_dot(queries, k[keys, :], 1, 1)
        if masked:
            scores = _masked(scores, block * size, start[:, None], end[:, None], 1)
        weights = jnp.exp2(scores - log_totals)
        d_scores = weights * (float32_dot(d_outs, v[keys, :], 1, 1) - deltas)
        return sum_q + float32_dot(d_scores.astype(k.dtype), k[keys, :], 1, 0)

    sum_q = _visit(limits, visit, jnp.zeros(q.shape, jnp.float32))
    d_q[...] = (scale * sum_q).astype(d_q.dtype)


def _key_kernel(  # type: ignore[no-untyped-def]
    limits, spans, q, k, v, d_out, log_total, delta, d_k, d_v, *, scale, size
):
    """The gradients of a block of keys and its values, from all that share them; scores are `[keys, queries]`."""
    keys, values, first = k[...], v[...], pl.program_id(0) * k.shape[0]

    def visit(block: Any, carry: tuple, masked: bool, head: Any) -> tuple:
        sum_k, sum_v = carry
        own = pl.ds(block * size, size)
        queries, d_outs = q[own, head, :], d_out[own, head, :]
        scores = scale * LOG2_E * float32_dot(keys, queries, 1, 1)
        if masked:
            scores = _masked(scores, first, spans[0, own][None], spans[1, own][None], 0)
        weights = jnp.exp2(scores - log_total[head, own][None])
        sum_v += float32_dot(weights.astype(d_outs.dtype), d_outs, 1, 0)
        d_scores = weights * (float32_dot(values, d_outs, 1, 1) - delta[head, own][None])
        return sum_k + float32_dot(d_scores.astype(queries.dtype), queries, 1, 0), sum_v

    zeros = jnp.zeros(k.shape, jnp.float32)

    def of_head(head: Any, carry: tuple) -> tuple:
        return _visit(limits, functools.partial(visit, head=head), carry)

    sum_k, sum_v = jax.lax.fori_loop(0, q.shape[1], of_head, (zeros, zeros))
    d_k[...] = (scale * sum_k).astype(d_k.dtype)
    d_v[...] = sum_v.astype(d_v.dtype)


_attention.defvjp(_forward, _backward)


def _masked(
    scores: Float[Array, "_ _"], first: Any, start: Int[Array, "_ _"], end: Int[Array, "_ _"], axis: int
) -> Float[Array, "_ _"]:
    """Scores whose keys stand along an axis, from the key `first` on, with those outside the spans masked."""
    key = first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis)
    return jnp.where((start <= key) & (key < end), scores, MASKED)


def _visit(limits: Any, visit: Callable, carry: Any) -> Any:
    """Visits the blocks of a range, masked at its two ends."""
    begin, inner_begin, inner_end, end = (limits[i] for i in range(4))
    masked, inside = (functools.partial(visit, masked=masked) for masked in (True, False))
    carry = jax.lax.fori_loop(begin, inner_begin, masked, carry)
    carry = jax.lax.fori_loop(inner_begin, inner_end, inside, carry)
    return jax.lax.fori_loop(inner_end, end, masked, carry)


def _key_limits(spans: Int[Array, "B 2 T"], tile: Tile) -> Int[Array, "B blocks 4"]:
    blocks = spans[:, 0], spans[:, 1], tile.kept, tile.visited
    return _limits(key_ranges(*blocks), inner_ranges(*blocks))


def _query_limits(spans: Int[Array, "B 2 T"], tile: Tile, keys: int) -> Int[Array, "B blocks 4"]:
    """Inner ranges never decrease either, so that they turn round as the others do."""
    blocks = spans[:, 0], spans[:, 1], tile.visited, tile.kept
    return _limits(*(query_ranges(x(*blocks), keys // tile.kept) for x in (key_ranges, inner_ranges)))


def _limits(touched: Ranges, inner: Ranges) -> Int[Array, "B blocks 4"]:
    """Where the visits of each block begin, need no mask, need one again, and end."""
    begin = jnp.clip(inner.begin, touched.begin, touched.end)
    return jnp.stack([touched.begin, begin, jnp.clip(inner.end, begin, touched.end), touched.end], -1)


# What a program sees, by its block, head and row: its own block of an array where a tile is given, else all of it.
_LIMITS = pl.BlockSpec((None, None, 4), lambda block, head, row: (row, block, 0))


def _vectors(x: Any, tile: Tile | None = None) -> pl.BlockSpec:
    """Of `[B, T, H, D]`."""
    size = tile.kept if tile else x.shape[1]
    return pl.BlockSpec(
        (None, size, None, x.shape[3]), lambda block, head, row: (row, block if tile else 0, head, 0)
    )


def _shared(x: Any, q: Any) -> pl.BlockSpec:
    """Of the keys or values that a head of queries shares with its group."""
    group = q.shape[2] // x.shape[2]
    return pl.BlockSpec((None, x.shape[1], None, x.shape[3]), lambda block, head, row: (row, 0, head // group, 0))


def _group(x: Any, group: int) -> pl.BlockSpec:
    """Of the queries that share a head of keys, `[T, G, D]`."""
    return pl.BlockSpec((None, x.shape[1], group, x.shape[3]), lambda block, head, row: (row, 0, head, 0))


def _group_numbers(x: Any, group: int) -> pl.BlockSpec:
    """The same of `[B, H, T]`."""
    return pl.BlockSpec((None, group, x.shape[2]), lambda block, head, row: (row, head, 0))


def _numbers(x: Any, tile: Tile | None = None) -> pl.BlockSpec:
    """Of `[B, H, T]`."""
    size = tile.kept if tile else x.shape[2]
    return pl.BlockSpec((None, None, size), lambda block, head, row: (row, head, block if tile else 0))


def _lines(x: Any, tile: Tile | None = None) -> pl.BlockSpec:
    """Of `[B, 2, T]`."""
    size = tile.kept if tile else x.shape[2]
    return pl.BlockSpec((None, 2, size), lambda block, head, row: (row, 0, block if tile else 0))
