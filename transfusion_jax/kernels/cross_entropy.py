"""The text head and its cross-entropy in one, a chunk of elements at a time: `[B, T, vocabulary]` is never held."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

CHUNK = 256  # elements of each row whose logits are held at a time


def cross_entropy(
    hidden: Float[Array, "B T W"], head: Float[Array, "W V"], targets: Int[Any, "B T"], entries: int
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """−log softmax(hidden · head) at the targets, and the log of the softmax's denominator.

    Logits are float32, and computed again in the backward pass.

    On a mesh each device takes some of the elements, and all of the head: its gradient is summed once.

    Args:
        entries: the vocabulary; what stands behind it in `head` is padding and never likely.

    Returns:
        Both in float32.
    """
    function = functools.partial(_losses, entries)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(hidden, head, targets)
    elements = P(("data", "fsdp"), ("context", "tensor"))
    sharded = jax.shard_map(
        function, in_specs=(elements, P(), elements), out_specs=(elements, elements), check_vma=False
    )
    length = hidden.shape[1]
    parts = mesh.shape["context"] * mesh.shape["tensor"]
    hidden, targets = (_pad(x, parts) for x in (hidden, targets))
    losses, log_total = sharded(hidden, head, targets)
    return losses[:, :length], log_total[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(
    entries: int, hidden: Float[Array, "B T W"], head: Float[Array, "W V"], targets: Int[Any, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    return _forward(entries, hidden, head, targets)[0]


def _forward(entries, hidden, head, targets):  # type: ignore[no-untyped-def]
    def chunk(args: tuple) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
        hidden, targets = args
        logits = _logits(hidden, head, entries)
        log_total = jax.nn.logsumexp(logits, -1)
        return log_total - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0], log_total

    losses, log_total = jax.lax.map(chunk, (_chunks(hidden), _chunks(targets)))
    return (_join(losses, hidden), _join(log_total, hidden)), (hidden, head, targets, log_total)


def _backward(entries, residuals, cotangents):  # type: ignore[no-untyped-def]
    hidden, head, targets, log_total = residuals
    d_losses, d_log_total = cotangents

    def chunk(d_head: Float[Array, "W V"], args: tuple) -> tuple[Float[Array, "W V"], Float[Array, "B C W"]]:
        hidden, targets, log_total, d_losses, d_log_total = args
        likelihood = jnp.exp(_logits(hidden, head, entries) - log_total[..., None])
        right = jnp.arange(head.shape[1]) == targets[..., None]
        d_logits = (likelihood - right) * d_losses[..., None] + likelihood * d_log_total[..., None]
        d_logits = d_logits.astype(hidden.dtype)
        d_head += _product(_matrix(hidden).T, _matrix(d_logits))
        return d_head, _product(_matrix(d_logits), head.T).reshape(hidden.shape)

    chunks = (_chunks(hidden), _chunks(targets), log_total, _chunks(d_losses), _chunks(d_log_total))
    d_head, d_hidden = jax.lax.scan(chunk, jnp.zeros(head.shape, jnp.float32), chunks)
    return _join(d_hidden, hidden).astype(hidden.dtype), d_head.astype(head.dtype), None


_losses.defvjp(_forward, _backward)


def _logits(hidden: Float[Array, "B C W"], head: Float[Array, "W V"], entries: int) -> Float[Array, "B C V"]:
    """Of a chunk, float32; −∞ for padding."""
    logits = _product(_matrix(hidden), head).reshape(*hidden.shape[:2], -1)
    return jnp.where(jnp.arange(head.shape[1]) < entries, logits, -jnp.inf)


def _product(a: Float[Array, "n k"], b: Float[Array, "k m"]) -> Float[Array, "n m"]:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _matrix(x: Float[Array, "... C"]) -> Float[Array, "n C"]:
    """All axes but the last as one: XLA on CPU multiplies plain matrices fastest."""
    return x.reshape(-1, x.shape[-1])


def _chunks(x: Shaped[Any, "B T ..."]) -> Any:
    """`[B, T, …]` as `[T / chunk, B, chunk, …]`, zeros added."""
    size = min(CHUNK, x.shape[1])
    padded = _pad(x, size)
    return jnp.moveaxis(padded.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)


def _join(x: Shaped[Array, "chunks B C ..."], like: Shaped[Array, "B T ..."]) -> Shaped[Array, "B T ..."]:
    """The inverse of `_chunks`."""
    whole = jnp.moveaxis(x, 0, 1)
    return whole.reshape(len(like), -1, *x.shape[3:])[:, : like.shape[1]]


def _pad(x: Shaped[Any, "B T ..."], multiple: int) -> Shaped[Array, "B _ ..."]:
    """Zeros added to the second axis, up to a multiple."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % multiple)] + [(0, 0)] * (x.ndim - 2))
