"""Spans: the attention mask as one interval of keys per query.

For query i, `start[i]` is the first element of its document; `end[i]` is i + 1 for text and the end of its image
for a patch; padding attends itself alone. Causal text, bidirectional images, packed documents and padding are all
this one interval, so a mask costs O(T):

    element      BOS  a  BOI  p  p  EOI │ BOS  b │ pad
    index         0   1   2   3  4   5  │  6   7 │  8
    start         0   0   0   0  0   0  │  6   6 │  8
    end           1   2   3   5  5   6  │  7   8 │  9

The kernels share what comes after it: constants of the online softmax, the mask, a product, whole blocks of spans.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

# Finite: where a block holds no key of a query, its weights are numbers that the next block wipes out, not NaN.
MASKED = -1e30
OUTPUTS = "attention"  # names what a policy of rematerialisation may keep, so that no kernel runs twice
LOG2_E = math.log2(math.e)  # scores are kept times this, so that weights are powers of two


class Spans(NamedTuple):
    """Keys that each query may attend to, as `[start, end)`, in key positions."""

    start: Int[Any, "*B T"]
    end: Int[Any, "*B T"]


def check_spans(spans: Spans) -> None:
    """Raises ValueError unless every row keeps the contract of a span mask.

    Starts and ends never decrease along a row, and `start ≤ i < end` for every query i.
    """
    start, end = np.asarray(spans.start), np.asarray(spans.end)
    index = np.arange(start.shape[-1])
    checks = {
        "a span must hold its own element": (start <= index) & (index < end),
        "span starts must never decrease": np.diff(start, axis=-1) >= 0,
        "span ends must never decrease": np.diff(end, axis=-1) >= 0,
        "a span must end within its row": end <= start.shape[-1],
    }
    for message, holds in checks.items():
        if not np.all(holds):
            raise ValueError(f"{message}; broken at {np.argwhere(~holds)[0].tolist()}")


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
