"""Dense attention with a `[B, Tq, Tk]` mask: simple, slow, the definition that the others are held to."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from transfusion_jax.kernels.softmax import MASKED, dense_mask


def attention(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """See `transfusion_jax.model.attention`: q `[B, Tq, H, D]`, k and v `[B, Tk, H, D]`, spans `[B, Tq]`."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    mask = dense_mask(start, end, k.shape[1])
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
