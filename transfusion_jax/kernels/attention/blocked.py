"""Span attention in plain JAX, for every backend: blocks of queries visit the blocks of keys that they touch.

Scores stand with keys along the first axis and queries along the last. So every product is one of two matrices as
they lie in memory, and maxima and sums run over whole vectors: XLA on CPU does both about twice as fast that way.
Memory grows linearly with T; scores are computed again in the backward pass. Queries that share a head of keys and
values stand side by side along the last axis, so that each product serves all of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from transfusion_jax.kernels.attention.schedule import key_ranges
from transfusion_jax.kernels.platform import platform
from transfusion_jax.kernels.spans import MASKED, named, output_products

# Elements of a block. Larger ones visit more keys that no span holds; smaller ones make products that XLA on CPU
# computes on one core.
QUERY_BLOCK = 256
KEY_BLOCK = 128


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
) -> Float[Array, "B T H D"]:
    """See `transfusion_jax.model.attention`."""
    arguments = (*(jnp.swapaxes(x, 1, 2) for x in (q, k, v)), start, end)
    if platform() == "cpu":  # row by row, each with its own ranges
        out = jax.lax.map(lambda row: heads_attention(*(x[None] for x in row))[0], arguments)
    else:
        out = heads_attention(*arguments)
    return jnp.swapaxes(out, 1, 2)


@jax.custom_vjp
def heads_attention(
    q: Float[Array, "B H T D"],
    k: Float[Array, "B K S D"],
    v: Float[Array, "B K S D"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
) -> Float[Array, "B H T D"]:
    """The same with heads first."""
    return _forward(q, k, v, start, end)[0]


def _forward(q, k, v, start, end):  # type: ignore[no-untyped-def]
    """The output, and what the backward pass needs: the inputs, the output and log Σ exp per query."""
    keys, values = _whole(k, 2, KEY_BLOCK), jnp.swapaxes(_whole(v, 2, KEY_BLOCK), 2, 3)

    def block(one: _Queries) -> tuple[Float[Array, "B K Gn D"], Float[Array, "B K 1 Gn"]]:
        q = jnp.swapaxes(one.q, 2, 3)  # [B, K, D, block]

        def visit(number: Int[Array, ""], carry: tuple) -> tuple:
            top, total, out = carry
            scores = _scores(_part(keys, number, 2), q, one, number)
            new_top = jnp.maximum(top, scores.max(2, keepdims=True))
            weights, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
            out = out * shrink + _product(_part(values, number, 3), weights.astype(v.dtype))
            return new_top, total * shrink + weights.sum(2, keepdims=True), out

        per_query = jnp.zeros((*q.shape[:2], 1, q.shape[3]))
        initial = (per_query + MASKED, per_query, jnp.zeros(q.shape))
        top, total, out = jax.lax.fori_loop(one.first, one.last, visit, initial)
        return jnp.swapaxes(out / total, 2, 3).astype(q.dtype), top + jnp.log(total)

    out, log_total = jax.lax.map(block, _split(q, start, end, k.shape[1]))
    out, log_total = named(_join(out, q.shape), log_total)
    return out, (q, k, v, start, end, out, log_total)


def _backward(residuals, d_out):  # type: ignore[no-untyped-def]
    """Gradients of `heads_attention` for q, k and v."""
    q, k, v, start, end, out, log_total = residuals
    keys, values = _whole(k, 2, KEY_BLOCK), _whole(v, 2, KEY_BLOCK)
    keys_across = jnp.swapaxes(keys, 2, 3)
    delta = output_products(out, d_out, 3)

    def block(carry: tuple, args: tuple) -> tuple[tuple, Float[Array, "B K Gn D"]]:
        one, d_out, delta, log_total = args
        q_across, d_out_across, delta = (jnp.swapaxes(x, 2, 3) for x in (one.q, d_out, delta))

        def visit(number: Int[Array, ""], carry: tuple) -> tuple:
            d_k, d_v, d_q = carry
            weights = jnp.exp(_scores(_part(keys, number, 2), q_across, one, number) - log_total)
            d_weights = _product(_part(values, number, 2), d_out_across)
            d_scores = (weights * (d_weights - delta)).astype(q.dtype)
            d_k = _add(d_k, number, _product(d_scores, one.q))
            d_v = _add(d_v, number, _product(weights.astype(q.dtype), d_out))
            return d_k, d_v, d_q + _product(_part(keys_across, number, 3), d_scores)

        *carry, d_q = jax.lax.fori_loop(one.first, one.last, visit, (*carry, jnp.zeros(q_across.shape)))
        return tuple(carry), jnp.swapaxes(d_q, 2, 3)

    zeros, heads = jnp.zeros(keys.shape), k.shape[1]
    per_block = (_split(q, start, end, heads), _grouped(d_out, heads), _grouped(delta, heads), log_total)
    (d_k, d_v), d_q = jax.lax.scan(block, (zeros, zeros), per_block)
    scale, length = 1 / math.sqrt(q.shape[-1]), k.shape[2]
    d_q, d_k, d_v = _join(d_q, q.shape) * scale, d_k[:, :, :length] * scale, d_v[:, :, :length]
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


heads_attention.defvjp(_forward, _backward)


class _Queries(NamedTuple):
    """Blocks of queries along the first axis, or one of them."""

    q: Float[Array, "*blocks B K Gn D"]  # one query of each head of a group after the other
    start: Int[Array, "*blocks B 1 1 Gn"]
    end: Int[Array, "*blocks B 1 1 Gn"]
    first: Int[Array, "*blocks"]  # the range of key blocks to visit, a scalar
    last: Int[Array, "*blocks"]


def _split(q: Float[Array, "B H T D"], start: Int[Array, "B T"], end: Int[Array, "B T"], heads: int) -> _Queries:
    size, group = _size(q), q.shape[1] // heads
    ranges = key_ranges(start, end, size, KEY_BLOCK)  # of each row; a block visits what any row touches
    start, end = (jnp.tile(_blocks(x[:, None, None], 3, size), group) for x in (start, end))
    return _Queries(_grouped(q, heads), start, end, ranges.begin.min(0), ranges.end.max(0))


def _size(q: Float[Array, "B H T D"]) -> int:
    """Queries in a block."""
    return min(QUERY_BLOCK, q.shape[2])


def _scores(
    keys: Float[Array, "B K S D"], q: Float[Array, "B K D Gn"], one: _Queries, number: Int[Array, ""]
) -> Float[Array, "B K S Gn"]:
    """Scaled and masked scores, float32."""
    scores = _product(keys, q) / math.sqrt(q.shape[2])
    key = number * KEY_BLOCK + jnp.arange(KEY_BLOCK)[:, None]
    return jnp.where((one.start <= key) & (key < one.end), scores, MASKED)


def _product(a: Float[Array, "... i j"], b: Float[Array, "... j k"]) -> Float[Array, "... i k"]:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _whole(x: Shaped[Array, " ..."], axis: int, size: int) -> Shaped[Array, " ..."]:
    """Zeros added up to a multiple of the block's size."""
    extra = [(0, -x.shape[axis] % size if a == axis else 0) for a in range(x.ndim)]
    return jnp.pad(x, extra)


def _blocks(x: Shaped[Array, " ..."], axis: int, size: int) -> Shaped[Array, "blocks ..."]:
    """Blocks of an axis, counted by a new first one."""
    whole = _whole(x, axis, size)
    return jnp.moveaxis(whole.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis, 0)


def _grouped(x: Float[Array, "B H T d"], heads: int) -> Float[Array, "blocks B {heads} Gn d"]:
    """Blocks of what belongs to queries, those of a group side by side."""
    blocks = _blocks(x, 2, _size(x))
    return blocks.reshape(*blocks.shape[:2], heads, -1, x.shape[3])


def _join(x: Float[Array, "blocks B K Gn D"], shape: tuple[int, ...]) -> Float[Array, "B H T D"]:
    """The inverse of `_grouped`, for queries of this shape."""
    blocks, rows, channels = *x.shape[:2], x.shape[-1]
    apart = jnp.moveaxis(x.reshape(blocks, rows, shape[1], -1, channels), 0, 2)
    return apart.reshape(rows, shape[1], -1, channels)[:, :, : shape[2]]


def _part(x: Float[Array, " ..."], number: Int[Array, ""], axis: int) -> Float[Array, " ..."]:
    return jax.lax.dynamic_slice_in_dim(x, number * KEY_BLOCK, KEY_BLOCK, axis)


def _add(
    x: Float[Array, "B K S D"], number: Int[Array, ""], part: Float[Array, "B K block D"]
) -> Float[Array, "B K S D"]:
    """x with a block of keys' part added."""
    return jax.lax.dynamic_update_slice_in_dim(x, _part(x, number, 2) + part, number * KEY_BLOCK, 2)
