"""Dense attention with a `[B, Tq, Tk]` mask: simple, slow, the definition that the others are held to."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transfusion_jax.kernels.spans import MASKED, by_group, dense_mask


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
) -> Float[Array, "B T H D"]:
    """See `transfusion_jax.model.attention`."""
    grouped = by_group(q, k.shape[2])
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k, preferred_element_type=jnp.float32) / math.sqrt(
        q.shape[-1]
    )
    mask = dense_mask(start, end, k.shape[1])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
    return jnp.einsum("bkgts,bskd->btkgd", weights.astype(v.dtype), v).reshape(q.shape)
