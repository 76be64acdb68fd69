"""Span attention for TPU in Pallas: online softmax over exactly the blocks that spans touch, forward and backward.

The grid is (heads, steps). A step is one pair of a query block and a key block, from a list that is computed from
the spans at run time and lies in scalar memory; the grid is as long as the list.

Everything is kept as `[channels, elements]`, and scores as `[keys, queries]`. What belongs to a query (its span,
its running maximum and sum) is then a row of lanes, which broadcasts over sublanes at no cost, and heads of 64
channels fill whole registers. The method is FlashAttention's (arXiv 2205.14135, 2307.08691).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from transfusion_jax.kernels.attention.schedule import BlockSteps, plan_steps
from transfusion_jax.kernels.platform import platform
from transfusion_jax.kernels.spans import LOG2_E, MASKED, float32_dot, named, output_products, whole_spans

LANES = 128
SUBLANES = {"float32": 8, "bfloat16": 16}  # rows of a register's tile
MOST_RESIDENT = 1 << 22  # values of d_q per row and head: 16 MiB, two buffers of which are kept in VMEM
MOST_PAIRS = 1 << 17  # entries of the list of steps, half of scalar memory
VMEM_BYTES = 64 << 20  # what one TensorCore of a v5p has; others have more
SCALARS = len(BlockSteps._fields)


@dataclass(frozen=True)
class Blocks:
    """Elements that one step handles; multiples of 128 on a TPU, and cut to what there is."""

    query: int = 512
    key: int = 512


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
) -> Float[Array, "B T H D"]:
    """See `transfusion_jax.model.attention`; raises ValueError where this is no TPU, too."""
    if platform() != "tpu":
        raise ValueError(
            f"attention 'tpu' runs on TPU, not on {platform()}; model.attention='blocked' runs anywhere"
        )
    return tpu_span_attention(q, k, v, start, end)


def tpu_span_attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
    blocks: Blocks = Blocks(),
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "B T H D"]:
    """Softmax attention of each query over the keys `[start, end)`, scaled by 1/√D; differentiable in q, k and v.

    Args:
        q: float32 or bfloat16.
        k, v: of the same dtype; K divides H.
        start, end: in key positions, keeping the contract of spans: neither ever decreases, and
            consecutive queries' spans hold consecutive keys. The queries may stand anywhere among the keys.
        blocks: sizes of the blocks.
        interpret: run by Pallas's interpreter on any backend, slowly, for tests.

    Returns:
        Of each query, in the dtype of q; products are accumulated, and the softmax taken, in float32.

    Raises:
        ValueError: the kernel cannot take these arguments; the message says why and what can.
    """
    queries, keys = q.shape[1], k.shape[1]
    blocks = Blocks(*(min(b, -(-t // LANES) * LANES) for b, t in ((blocks.query, queries), (blocks.key, keys))))
    if not interpret:
        _check_support(q, k, v, blocks)

    def channels_first(x: Float[Array, "B _ H D"], block: int) -> Float[Array, "B H D _"]:
        return jnp.pad(jnp.transpose(x, (0, 2, 3, 1)), [(0, 0)] * 3 + [(0, -x.shape[1] % block)])

    spans = whole_spans(start, end, blocks.query)
    arrays = (channels_first(q, blocks.query), channels_first(k, blocks.key), channels_first(v, blocks.key))
    out = _attention(*arrays, spans, blocks, interpret)
    return jnp.transpose(out[..., :queries], (0, 3, 1, 2))


def _check_support(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"], blocks: Blocks
) -> None:
    rows, queries, _, channels = q.shape
    pairs = rows * -(-queries // blocks.query) * -(-k.shape[1] // blocks.key)
    sublanes = SUBLANES.get(q.dtype.name)
    if sublanes is None or {k.dtype, v.dtype} != {q.dtype}:
        reason = f"arrays of one dtype, float32 or bfloat16, not {q.dtype}, {k.dtype} and {v.dtype}"
    elif channels % sublanes:
        reason = f"heads of a multiple of {sublanes} channels in {q.dtype}, not {channels}"
    elif blocks.query % LANES or blocks.key % LANES:
        reason = f"blocks of a multiple of {LANES} elements, not {blocks.query} and {blocks.key}"
    elif queries * channels > MOST_RESIDENT:
        reason = f"at most {MOST_RESIDENT // channels} queries of {channels} channels per device, not {queries}"
    elif pairs > MOST_PAIRS:
        reason = f"at most {MOST_PAIRS} pairs of blocks per device, not {pairs} (fewer rows or larger blocks help)"
    else:
        return
    raise ValueError(f"attention 'tpu' takes {reason}; model.attention='blocked' takes these")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(
    q: Float[Array, "B H D T"],
    k: Float[Array, "B K D S"],
    v: Float[Array, "B K D S"],
    spans: Int[Array, "B 2 T"],
    blocks: Blocks,
    interpret: bool | pltpu.InterpretParams,
) -> Float[Array, "B H D T"]:
    """The same with elements last, in whole blocks, with starts and ends in one array."""
    return _forward(q, k, v, spans, blocks, interpret)[0]


def _forward(q, k, v, spans, blocks, interpret):  # type: ignore[no-untyped-def]
    rows, heads, channels, queries = q.shape
    steps, count = plan_steps(spans, blocks.query, blocks.key, k.shape[3], "query")
    at_query, at_key = _index_maps(queries // blocks.query)
    of_spans, of_query, _, of_number, of_shared = _block_specs(
        blocks, channels, at_query, at_key, heads // k.shape[1]
    )
    out, log_total = pl.pallas_call(
        functools.partial(_forward_kernel, scale=LOG2_E / math.sqrt(channels)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=SCALARS,
            grid=(heads, count),
            in_specs=[of_spans, of_query, of_shared, of_shared],
            out_specs=[of_query, of_number],
            scratch_shapes=[pltpu.VMEM((lines, blocks.query), jnp.float32) for lines in (1, 1, channels)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((rows, heads, 1, queries), jnp.float32),
        ],
        compiler_params=_compiler_params(),
        interpret=interpret,
        name="span_attention_forward",
    )(*steps, spans[:, None], q, k, v)
    out, log_total = named(out, log_total)
    return out, (q, k, v, spans, out, log_total)


def _forward_kernel(*refs: Any, scale: float) -> None:
    """One step: the running maximum, sum and mixture of values of a query block, moved on by one key block."""
    steps = BlockSteps(*refs[:SCALARS])
    spans, q, k, v, out, log_total, top, total, mixed = refs[SCALARS:]
    step = pl.program_id(1)
    tile, block = steps.at(step)

    @pl.when(block == steps.begin[tile])
    def _() -> None:
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    def visit(masked: bool) -> None:
        scores = _scores(q, k, spans, block, scale, masked)
        new_top = jnp.maximum(top[...], scores.max(0, keepdims=True))
        weights = jnp.exp2(scores - new_top)
        shrink = jnp.exp2(top[...] - new_top)
        top[...] = new_top
        total[...] = shrink * total[...] + weights.sum(0, keepdims=True)
        mixed[...] = shrink * mixed[...] + float32_dot(v[...], weights.astype(v.dtype), 1, 0)

    _masked_where_needed(visit, steps, tile, block)

    @pl.when(block + 1 == steps.end[tile])
    def _() -> None:
        out[...] = (mixed[...] / total[...]).astype(out.dtype)
        log_total[...] = top[...] + jnp.log2(total[...])


def _backward(blocks, interpret, residuals, d_out):  # type: ignore[no-untyped-def]
    q, k, v, spans, out, log_total = residuals
    rows, heads, channels, queries = q.shape
    shared, keys = k.shape[1], k.shape[3]
    query_tiles, tiles = queries // blocks.query, keys // blocks.key
    delta = output_products(out, d_out, 2)
    steps, count = plan_steps(spans, blocks.query, blocks.key, keys, "key")

    at_key, at_query = _index_maps(tiles)
    of_spans, of_query, of_key, of_number, of_shared = _block_specs(
        blocks, channels, at_query, at_key, heads // shared
    )
    of_row = pl.BlockSpec((None, None, channels, queries), lambda *step: (*at_key(*step)[:2], 0, 0))
    d_q, d_k, d_v = pl.pallas_call(
        functools.partial(_backward_kernel, scale=1 / math.sqrt(channels), query_tiles=query_tiles, tiles=tiles),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=SCALARS,
            grid=(heads, count),
            in_specs=[of_spans, of_query, of_shared, of_shared, of_query, of_number, of_number],
            out_specs=[of_row, of_key, of_key],
            scratch_shapes=[pltpu.VMEM((channels, blocks.key), jnp.float32)] * 2,
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, jnp.float32),
            jax.ShapeDtypeStruct((rows, heads, channels, keys), k.dtype),
            jax.ShapeDtypeStruct((rows, heads, channels, keys), v.dtype),
        ],
        compiler_params=_compiler_params(),
        interpret=interpret,
        name="span_attention_backward",
    )(*steps, spans[:, None], q, k, v, d_out, log_total, delta)
    d_k, d_v = (x.reshape(rows, shared, -1, channels, keys).sum(2) for x in (d_k, d_v))
    return d_q.astype(q.dtype), d_k, d_v, None


def _backward_kernel(*refs: Any, scale: float, query_tiles: int, tiles: int) -> None:
    """One step: what a query block adds to the gradients of a key block, and this one to those of the queries.

    The gradients of a row's queries stay in VMEM until the row's last step. Those of keys and values come from one
    head of queries: the sum over its group is taken outside.
    """
    steps = BlockSteps(*refs[:SCALARS])
    spans, q, k, v, d_out, log_total, delta, d_q, d_k, d_v, sum_k, sum_v = refs[SCALARS:]
    tile, query_block = steps.at(pl.program_id(1))
    block = tile % tiles
    query_tile = tile // tiles * query_tiles + query_block
    size = q.shape[1]

    @pl.when(query_block == steps.begin[tile])
    def _() -> None:
        sum_k[...] = jnp.zeros_like(sum_k)
        sum_v[...] = jnp.zeros_like(sum_v)

    def visit(masked: bool) -> None:
        scores = _scores(q, k, spans, block, scale * LOG2_E, masked)
        weights = jnp.exp2(scores - log_total[...])
        sum_v[...] += float32_dot(d_out[...], weights.astype(d_out.dtype), 1, 1)
        d_weights = float32_dot(v[...], d_out[...], 0, 0)
        d_scores = (weights * (d_weights - delta[...])).astype(q.dtype)
        sum_k[...] += float32_dot(q[...], d_scores, 1, 1)
        own = pl.ds(pl.multiple_of(query_block * size, size), size)
        d_queries = scale * float32_dot(k[...], d_scores, 1, 0)
        fresh = steps.keys_begin[query_tile] == block
        d_q[:, own] = d_queries + jnp.where(fresh, 0.0, d_q[:, own])

    @pl.when(query_block < steps.end[tile])
    def _() -> None:
        _masked_where_needed(visit, steps, query_tile, block)

    @pl.when(query_block + 1 >= steps.end[tile])
    def _() -> None:
        d_k[...] = (scale * sum_k[...]).astype(d_k.dtype)
        d_v[...] = sum_v[...].astype(d_v.dtype)


_attention.defvjp(_forward, _backward)


def _index_maps(tiles: int) -> tuple[Any, Any]:
    """Where the outer and the inner block of a step stand in `[B, H, …, T]`, for rows of `tiles` outer blocks."""

    def outer(head: Any, step: Any, *scalars: Any) -> tuple:
        tile = BlockSteps(*scalars).tile[step]
        return tile // tiles, head, 0, tile % tiles

    def inner(head: Any, step: Any, *scalars: Any) -> tuple:
        tile, block = BlockSteps(*scalars).at(step)
        return tile // tiles, head, 0, block

    return outer, inner


def _block_specs(blocks: Blocks, channels: int, at_query: Any, at_key: Any, group: int) -> list[pl.BlockSpec]:
    """Of the spans, of what each query has, each key has for a query's head, one number per query, and the keys."""

    def at_shared(head: Any, step: Any, *scalars: Any) -> tuple:
        return at_key(head // group, step, *scalars)

    return [
        pl.BlockSpec((None, None, 2, blocks.query), lambda head, *step: at_query(0, *step)),
        pl.BlockSpec((None, None, channels, blocks.query), at_query),
        pl.BlockSpec((None, None, channels, blocks.key), at_key),
        pl.BlockSpec((None, None, 1, blocks.query), at_query),
        pl.BlockSpec((None, None, channels, blocks.key), at_shared),
    ]


def _scores(q: Any, k: Any, spans: Any, block: Int[Array, ""], scale: float, masked: bool) -> Float[Array, "_ _"]:
    """Scaled scores `[keys, queries]` of one step, float32."""
    scores = scale * float32_dot(k[...], q[...], 0, 0)
    if not masked:
        return scores
    key = block * k.shape[1] + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    return jnp.where((spans[0:1, :] <= key) & (key < spans[1:2, :]), scores, MASKED)


def _masked_where_needed(visit: Any, steps: BlockSteps, query_tile: Int[Array, ""], block: Int[Array, ""]) -> None:
    """Visits one pair of blocks, without a mask where all of the keys are in every query's span."""
    inside = (steps.inner_begin[query_tile] <= block) & (block < steps.inner_end[query_tile])
    pl.when(inside)(lambda: visit(masked=False))
    pl.when(jnp.logical_not(inside))(lambda: visit(masked=True))


def _compiler_params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES)
