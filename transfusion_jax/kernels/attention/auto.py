"""The platform's own kernel, or `blocked` where there is none or a device has few queries."""

from __future__ import annotations

import jax

from transfusion_jax.kernels.attention import blocked, gpu, tpu
from transfusion_jax.kernels.platform import platform

FEW_QUERIES = 128  # with fewer, as of a short prompt, a kernel's blocks would be mostly empty


def attention(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """See `transfusion_jax.model.attention`: q `[B, Tq, H, D]`, k and v `[B, Tk, H, D]`, spans `[B, Tq]`."""
    if q.shape[1] < FEW_QUERIES:
        return blocked.attention(q, k, v, start, end)
    if platform() == "tpu":
        return tpu.attention(q, k, v, start, end)
    return (blocked if gpu.why_not_here() else gpu).attention(q, k, v, start, end)
