"""The platform's own kernel, or `blocked` where there is none or a device has few queries."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from transfusion_jax.kernels.attention import blocked, gpu, tpu
from transfusion_jax.kernels.platform import platform

FEW_QUERIES = 128  # with fewer, as of a short prompt, a kernel's blocks would be mostly empty


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
) -> Float[Array, "B T H D"]:
    """See `transfusion_jax.model.attention`."""
    if q.shape[1] < FEW_QUERIES:
        return blocked.attention(q, k, v, start, end)
    if platform() == "tpu":
        return tpu.attention(q, k, v, start, end)
    return (blocked if gpu.why_not_here() else gpu).attention(q, k, v, start, end)
