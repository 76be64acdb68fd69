"""Attention under a span mask: one function, several implementations, each exact."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from transfusion_jax.model.spans import Spans, dense_mask

QUERY_BLOCK = 256  # queries that the blocked path handles at a time
MASKED = -1e30  # finite, so that a fully masked padding column never makes a NaN


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    spans: Spans,
    query_offset: int | jax.Array = 0,
    implementation: str | None = None,
) -> jax.Array:
    """Softmax attention of each query over the keys of its span, scaled by 1/√D.

    Args:
        q: `[B, Tq, H, D]`.
        k, v: `[B, Tk, H, D]`; Tq and Tk may differ (a cache).
        spans: `[B, S]` with `S ≥ query_offset + Tq`: query i has entry `query_offset + i`, in key positions.
        query_offset: where in `spans` the first query stands.
        implementation: "blocked" (default: linear memory in T, any backend) or "reference" (dense, for tests).

    Returns:
        `[B, Tq, H, D]`, in the dtype of q. The softmax is computed in float32.

    Raises:
        ValueError: unknown implementation, or shapes that do not agree.
    """
    check_shapes(q, k, v, spans)
    queries = q.shape[1]
    if spans.start.shape[1] != queries or not isinstance(query_offset, int) or query_offset != 0:
        spans = Spans(*(jax.lax.dynamic_slice_in_dim(jnp.asarray(x), query_offset, queries, 1) for x in spans))
    spans = Spans(jnp.asarray(spans.start), jnp.asarray(spans.end))
    name = "blocked" if implementation in (None, "auto") else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention implementation {name!r}: one of {', '.join(IMPLEMENTATIONS)}")
    return over_devices(IMPLEMENTATIONS[name])(q, k, v, spans.start, spans.end)


def check_shapes(q: jax.Array, k: jax.Array, v: jax.Array, spans: Spans) -> None:
    """Raises ValueError where the arguments of `attention` do not agree."""
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(f"attention shapes do not agree: q {q.shape}, k {k.shape}, v {v.shape}")
    for x in spans:
        if x.shape[0] != q.shape[0] or x.shape[1] < q.shape[1]:
            raise ValueError(f"spans {x.shape} do not cover the queries {q.shape[:2]}")


def over_devices(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same function with batch and heads split over the mesh in scope, so that its loops stay local."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    heads = P(("data", "fsdp"), None, "tensor", None)
    rows = P(("data", "fsdp"), None)
    return jax.shard_map(function, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False)


def reference(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """Dense attention with a `[B, Tq, Tk]` mask: simple, slow, the definition that the others are held to."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    mask = dense_mask(Spans(start, end), k.shape[1])
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)


def blocked(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """Attention one block of queries at a time; scores are recomputed in the backward pass."""

    def heads_first(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x, 1, 2)  # [B, T, H, D] -> [B, H, T, D]

    # Each head is given the spans anew: JAX would hoist what does not change over the heads, a T×T mask.
    start, end = (jnp.broadcast_to(x[:, None], (len(q), q.shape[2], q.shape[1])) for x in (start, end))
    over_heads = loop_over(lambda one: one_head(*one))
    return heads_first(loop_over(over_heads)((heads_first(q), heads_first(k), heads_first(v), start, end)))


def loop_over(function: Callable) -> Callable:
    """Maps over the leading axis: one by one on CPU, where each call fills the cores; at once elsewhere."""
    if jax.default_backend() == "cpu":
        return functools.partial(jax.lax.map, function)
    return jax.vmap(function)


@jax.custom_vjp
def one_head(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """Attention of one head: q `[Tq, D]`, k and v `[Tk, D]`, spans `[Tq]`."""
    return one_head_forward(q, k, v, start, end)[0]


def one_head_forward(q, k, v, start, end):  # type: ignore[no-untyped-def]
    """The output, and what the backward pass needs: the inputs, the output and log Σ exp per query."""

    def block(args):  # type: ignore[no-untyped-def]
        q, start, end = args
        scores = block_scores(q, k, start, end)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        out = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
        return out.astype(q.dtype), (top + jnp.log(total))[..., 0]

    out, log_total = from_blocks(jax.lax.map(block, to_blocks((q, start, end))), len(q))
    return out, (q, k, v, start, end, out, log_total)


def one_head_backward(residuals, d_out):  # type: ignore[no-untyped-def]
    """Gradients of `one_head` for q, k and v."""
    q, k, v, start, end, out, log_total = residuals
    scale = 1 / math.sqrt(q.shape[-1])
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1)

    def block(carry, args):  # type: ignore[no-untyped-def]
        d_k, d_v = carry
        q, start, end, d_out, log_total, delta = args
        weights = jnp.exp(block_scores(q, k, start, end) - log_total[:, None])
        d_v += jnp.dot(weights.astype(q.dtype).T, d_out, preferred_element_type=jnp.float32)
        d_weights = jnp.dot(d_out, v.T, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - delta[:, None]) * scale).astype(q.dtype)
        d_k += jnp.dot(d_scores.T, q, preferred_element_type=jnp.float32)
        d_q = jnp.dot(d_scores, k, preferred_element_type=jnp.float32)
        return (d_k, d_v), d_q.astype(q.dtype)

    zeros = jnp.zeros(k.shape, jnp.float32)
    blocks = to_blocks((q, start, end, d_out, log_total, delta))
    (d_k, d_v), d_q = jax.lax.scan(block, (zeros, zeros), blocks)
    return from_blocks(d_q, len(q)), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


one_head.defvjp(one_head_forward, one_head_backward)


def block_scores(q: jax.Array, k: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """Scaled and masked scores `[queries, keys]` of one block of queries, float32."""
    scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    key = jnp.arange(k.shape[0])
    return jnp.where((start[:, None] <= key) & (key < end[:, None]), scores, MASKED)


def to_blocks(tree):  # type: ignore[no-untyped-def]
    """`[T, …]` leaves as `[T / block, block, …]`, zero-padded; a padded query has an empty span."""
    queries = jax.tree.leaves(tree)[0].shape[0]
    size = min(QUERY_BLOCK, queries)
    extra = -queries % size

    def split(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)) if extra else x
        return padded.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(split, tree)


def from_blocks(tree, queries: int):  # type: ignore[no-untyped-def]
    """The inverse of `to_blocks`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:queries], tree)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {"blocked": blocked, "reference": reference}
