"""Attention under a span mask: several implementations, each exact, with a cache and without, and its weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import ATTENTION, ModelConfig
from transfusion_jax.kernels.softmax import MASKED, dense_mask
from transfusion_jax.model.kv_cache import Cache, Past
from transfusion_jax.model.layers import HeadNorm, dot, normal, param
from transfusion_jax.model.spans import Spans
from transfusion_jax.parallel.sharding import partition, split


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    spans: Spans,
    implementation: str = "auto",
) -> Float[Array, "B T H D"]:
    """Softmax attention of each query over the keys of its span, scaled by 1/√D.

    Args:
        k, v: as many keys as there are, S; there may be more or fewer than queries.
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
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(f"attention shapes do not agree: q {q.shape}, k {k.shape}, v {v.shape}")
    for x in spans:
        if x.shape != q.shape[:2]:
            raise ValueError(f"spans {x.shape} are not of the queries {q.shape[:2]}")


def over_devices(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same function with its arrays split over the mesh in scope, so that its loops stay local.

    Queries are split by row, element and head; every device of the axis `context` holds all keys of its rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function

    def split(
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S H D"],
        v: Float[Array, "B S H D"],
        start: Int[Array, "B T"],
        end: Int[Array, "B T"],
    ) -> Float[Array, "B T H D"]:
        queries = partition(mesh, q.shape, "batch", "elements", "heads")
        keys = partition(mesh, k.shape, "batch", None, "heads")
        spans = partition(mesh, start.shape, "batch", "elements")
        specs = (queries, keys, keys, spans, spans)
        return jax.shard_map(function, in_specs=specs, out_specs=queries, check_vma=False)(q, k, v, start, end)

    return split


class Attention(nnx.Module):
    """The weights of multi-head attention; they are `[in, out]` matrices."""

    def __init__(self, config: ModelConfig, *, key: Key[Array, ""]):
        self.config = config
        width = config.width
        q, k, v, o = jax.random.split(key, 4)
        self.query = param(normal(q, (width, width), config), "width", "heads")
        self.key = param(normal(k, (width, width), config), "width", "heads")
        self.value = param(normal(v, (width, width), config), "width", "heads")
        self.output = param(normal(o, (width, width), config, depth=config.layers), "heads", "width")
        if config.query_key_norm:
            self.query_norm = HeadNorm(config)
            self.key_norm = HeadNorm(config)

    def project(
        self, x: Float[Array, "B T W"]
    ) -> tuple[Float[Array, "B T H D"], Float[Array, "B T H D"], Float[Array, "B T H D"]]:
        """Queries, keys and values, not yet rotated."""
        config = self.config

        def heads(weight: nnx.Param) -> Float[Array, "B T H D"]:
            each = dot(x, weight).reshape(*x.shape[:-1], config.heads, config.head_dim)
            return split(each, "batch", "elements", "heads")

        q, k, v = heads(self.query), heads(self.key), heads(self.value)
        return (self.query_norm(q), self.key_norm(k), v) if config.query_key_norm else (q, k, v)


def attend(
    config: ModelConfig,
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H D"],
    spans: Spans,
    cache: Cache | None,
) -> tuple[Float[Array, "B T W"], Past]:
    """What attention gives each element, and the keys and values as a cache has them."""
    present = Past.of(k, v)
    if cache is None or cache.size == 0:
        mixed = attention(q, k, v, spans, config.attention)
    else:
        mixed = attend_with_past(q, present, spans, cache)
    return mixed.reshape(*mixed.shape[:2], config.width), present


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
    scores = jnp.concatenate([_scores(q, past.keys), _scores(q, present.keys)], -1) / math.sqrt(q.shape[-1])
    mask = jnp.concatenate([seen, new], -1)[:, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(q.dtype)
    mixed = _mixed(weights[..., : cache.size], past.values) + _mixed(weights[..., cache.size :], present.values)
    return jnp.swapaxes(mixed, 1, 2).astype(q.dtype)


def _scores(q: Float[Array, "B T H D"], keys: Float[Array, "B H S D"]) -> Float[Array, "B H T S"]:
    return jnp.einsum("bthd,bhsd->bhts", q, keys, preferred_element_type=jnp.float32)


def _mixed(weights: Float[Array, "B H T S"], values: Float[Array, "B H S D"]) -> Float[Array, "B H T D"]:
    return jnp.einsum("bhts,bhsd->bhtd", weights, values, preferred_element_type=jnp.float32)
