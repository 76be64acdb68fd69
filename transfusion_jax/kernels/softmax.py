"""What the kernels share: constants of the online softmax, masks, a product, and whole blocks of spans."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

# Finite: where a block holds no key of a query, its weights are numbers that the next block wipes out, not NaN.
MASKED = -1e30
OUTPUTS = "attention"  # names what a policy of rematerialisation may keep, so that no kernel runs twice
LOG2_E = math.log2(math.e)  # scores are kept times this, so that weights are powers of two


def dense_mask(start: Int[Any, "B T"], end: Int[Any, "B T"], keys: int) -> Bool[Array, "B T {keys}"]:
    """The mask that spans stand for. Only `reference` makes it of whole rows."""
    key = jnp.arange(keys)
    return (jnp.asarray(start)[..., None] <= key) & (key < jnp.asarray(end)[..., None])


def float32_dot(a: Float[Array, "_ _"], b: Float[Array, "_ _"], over_a: int, over_b: int) -> Float[Array, "_ _"]:
    """The product over one axis of each, accumulated in float32; float32 is not rounded on the way."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((over_a,), (over_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def by_group(q: Float[Array, "B T H D"], heads: int) -> Float[Array, "B T K G D"]:
    """Queries by the key-value head that they share, of which there are `heads`."""
    return q.reshape(*q.shape[:2], heads, q.shape[2] // heads, q.shape[3])


def whole_spans(start: Int[Array, "B T"], end: Int[Array, "B T"], block: int) -> Int[Array, "B 2 _"]:
    """Starts and ends in one array, in whole blocks.

    A padded query has the span of the last one: it touches nothing that this one does not.
    """
    widths = [(0, 0), (0, 0), (0, -start.shape[1] % block)]
    return jnp.pad(jnp.stack([start, end], 1), widths, mode="edge")


def output_products(out: Float[Array, "*shape"], d_out: Float[Array, "*shape"], axis: int) -> Float[Array, " ..."]:
    """Σ out · d_out over the channels in float32, which stands in the gradient of every score; the axis stays."""
    return jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis, keepdims=True)


def named(
    out: Float[Array, " ..."], log_total: Float[Array, " ..."]
) -> tuple[Float[Array, " ..."], Float[Array, " ..."]]:
    """A forward pass's results, for the backward one, under the name `OUTPUTS`."""
    return checkpoint_name(out, OUTPUTS), checkpoint_name(log_total, OUTPUTS)
