"""Attention under a span mask: several implementations, each exact, with a cache and without, and its weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import ATTENTION, ModelConfig
from transfusion_jax.kernels.spans import MASKED, Spans, by_group, dense_mask
from transfusion_jax.model.kv_cache import Cache, Past
from transfusion_jax.model.layers import dot, head_norm, normal, param
from transfusion_jax.parallel.sharding import head_split, partition, split


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    spans: Spans,
    implementation: str = "auto",
) -> Float[Array, "B T H D"]:
    """Softmax attention of each query over the keys of its span, scaled by 1/√D.

    Args:
        k, v: as many keys as there are, S; there may be more or fewer than queries. Each of the K heads, which
            divide H, serves the H / K consecutive heads of queries of its group (arXiv 2305.13245).
        spans: in key positions.
        implementation: a name in the table `ATTENTION`.

    Returns:
        Of each query, in the dtype of q. The softmax is computed in float32.

    Raises:
        ValueError: unknown implementation, one that cannot run here or cannot take these arrays, or shapes that do
            not agree.
    """
    check_shapes(q, k, v, spans)
    spans = Spans(jnp.asarray(spans.start), jnp.asarray(spans.end))
    return over_devices(ATTENTION[implementation])(q, k, v, spans.start, spans.end)


def check_shapes(q: Float[Array, " ..."], k: Float[Array, " ..."], v: Float[Array, " ..."], spans: Spans) -> None:
    """Raises ValueError where the arguments of `attention` do not agree."""
    if k.shape != v.shape or q.shape[::3] != k.shape[::3] or q.shape[2] % k.shape[2]:
        raise ValueError(f"attention shapes do not agree: q {q.shape}, k {k.shape}, v {v.shape}")
    for x in spans:
        if x.shape != q.shape[:2]:
            raise ValueError(f"spans {x.shape} are not of the queries {q.shape[:2]}")


def over_devices(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same function with its arrays split over the mesh in scope, so that its loops stay local.

    Queries are split by row, element and head; every device of the axis `context` holds all keys of its rows. Keys
    and values are split by head, too, as `head_split` says: where queries alone are, every device of the axis
    `tensor` holds all keys and takes the head that its queries share.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function

    def split(
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        v: Float[Array, "B S K D"],
        start: Int[Array, "B T"],
        end: Int[Array, "B T"],
    ) -> Float[Array, "B T H D"]:
        tensor, heads = mesh.shape["tensor"], k.shape[2]
        by_head = head_split(q.shape[2], heads, tensor)
        shared = by_head.queries and not by_head.keys

        def local(
            q: Float[Array, "b t h D"],
            k: Float[Array, "b S k D"],
            v: Float[Array, "b S k D"],
            start: Int[Array, "b t"],
            end: Int[Array, "b t"],
        ) -> Float[Array, "b t h D"]:
            if shared:
                own = jax.lax.axis_index("tensor") * heads // tensor
                k, v = (jax.lax.dynamic_slice_in_dim(x, own, 1, 2) for x in (k, v))
            return function(q, k, v, start, end)

        queries = partition(mesh, q.shape, "batch", "elements", "heads" if by_head.queries else None)
        keys = partition(mesh, k.shape, "batch", None, "heads" if by_head.keys else None)
        spans = partition(mesh, start.shape, "batch", "elements")
        specs = (queries, keys, keys, spans, spans)
        return jax.shard_map(local, in_specs=specs, out_specs=queries, check_vma=False)(q, k, v, start, end)

    return split


class Attention(nnx.Module):
    """The weights of attention with H heads of queries and K of keys and values; they are `[in, out]` matrices."""

    def __init__(self, config: ModelConfig, *, key: Key[Array, ""]):
        self.config = config
        width, queries, keys = config.width, config.query_width, config.key_width
        q, k, v, o = jax.random.split(key, 4)
        self.query = param(normal(q, (width, queries), config), "width", "heads")
        self.key = param(normal(k, (width, keys), config), "width", "heads")
        self.value = param(normal(v, (width, keys), config), "width", "heads")
        self.output = param(normal(o, (queries, width), config, depth=config.layers), "heads", "width")
        if config.attention_bias:
            self.query_bias = param(jnp.zeros(queries), "heads")
            self.key_bias = param(jnp.zeros(keys), "heads")
            self.value_bias = param(jnp.zeros(keys), "heads")
        if config.query_key_norm:
            self.query_norm = head_norm(config, config.heads)
            self.key_norm = head_norm(config, config.key_value_heads)

    def project(
        self, x: Float[Array, "B T W"]
    ) -> tuple[Float[Array, "B T H D"], Float[Array, "B T K D"], Float[Array, "B T K D"]]:
        """Queries, keys and values, not yet rotated."""

        config = self.config

        def heads(name: str, count: int) -> Float[Array, "B T _ D"]:
            flat = dot(x, getattr(self, name))
            if config.attention_bias:
                flat = flat + getattr(self, f"{name}_bias")[...]
            return split(flat.reshape(*x.shape[:-1], count, config.head_channels), "batch", "elements", "heads")

        q = heads("query", config.heads)
        k, v = (heads(name, config.key_value_heads) for name in ("key", "value"))
        return (self.query_norm(q), self.key_norm(k), v) if config.query_key_norm else (q, k, v)


def attend(
    config: ModelConfig,
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    spans: Spans,
    cache: Cache | None,
) -> tuple[Float[Array, "B T HD"], Past]:
    """What attention gives each element, and the keys and values as a cache has them."""
    present = Past.of(k, v)
    if cache is None or cache.size == 0:
        mixed = attention(q, k, v, spans, config.attention)
    else:
        mixed = attend_with_past(q, present, spans, cache)
    return mixed.reshape(*mixed.shape[:2], config.query_width), present


def attend_with_past(
    q: Float[Array, "B T H D"], present: Past, spans: Spans, cache: Cache
) -> Float[Array, "B T H D"]:
    """Softmax attention of new elements to those of a layer's cache and to one another, scaled by 1/√D.

    Scores are held for each of the few queries and all keys.

    Args:
        present: the new elements' keys and values.
        spans: in places of the row: the new elements begin at the cache's length.
        cache: one layer's.

    Returns:
        Of each query, in the dtype of q. The softmax is computed in float32.
    """
    (past,), length = cache.past, cache.length[:, None]
    start, end = jnp.asarray(spans.start), jnp.asarray(spans.end)
    seen = dense_mask(start, jnp.minimum(end, length), cache.size)
    new = dense_mask(start - length, end - length, q.shape[1])
    grouped = by_group(q, past.keys.shape[1])
    scores = jnp.concatenate([_scores(grouped, past.keys), _scores(grouped, present.keys)], -1)
    scores = scores / math.sqrt(q.shape[-1])
    mask = jnp.concatenate([seen, new], -1)[:, None, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(q.dtype)
    mixed = _mixed(weights[..., : cache.size], past.values) + _mixed(weights[..., cache.size :], present.values)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)


def _scores(q: Float[Array, "B T K G D"], keys: Float[Array, "B K S D"]) -> Float[Array, "B K G T S"]:
    return jnp.einsum("btkgd,bksd->bkgts", q, keys, preferred_element_type=jnp.float32)


def _mixed(weights: Float[Array, "B K G T S"], values: Float[Array, "B K S D"]) -> Float[Array, "B K G T D"]:
    return jnp.einsum("bkgts,bksd->bkgtd", weights, values, preferred_element_type=jnp.float32)
