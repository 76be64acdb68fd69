"""Attention under a span mask in PyTorch: fused with a dense mask, or FlexAttention with a mask of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


@dataclass(frozen=True)
class Attention:
    """An implementation."""

    mask: Callable[[Tensor, Tensor], Any]  # of starts and ends `[B, T]`
    attend: Callable[
        [Tensor, Tensor, Tensor, Any], Tensor
    ]  # q, k, v `[B, heads, T, head_dim]`, of k and v fewer heads or as many


def dense_mask(start: Tensor, end: Tensor) -> Tensor:
    """`[B, 1, T, T]`: true where a query may see a key."""
    key = torch.arange(start.shape[1], device=start.device)
    return ((start[..., None] <= key) & (key < end[..., None]))[:, None]


def block_mask(start: Tensor, end: Tensor) -> BlockMask:
    """What FlexAttention skips and what it masks, by blocks of 128 queries and keys."""

    def may_see(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        return (start[row, query] <= key) & (key < end[row, query])

    rows, length = start.shape
    return create_block_mask(may_see, rows, None, length, length, device=start.device)


def _scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[1] > k.shape[1])


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Any:
    return flex_attention(q, k, v, block_mask=mask, enable_gqa=q.shape[1] > k.shape[1])


ATTENTIONS = {
    "sdpa": Attention(dense_mask, _scaled_dot_product),
    "flex": Attention(block_mask, _flex),
}


def repeated(
    name: str,
    device: str,
    spans: Sequence[np.ndarray],
    arrays: Sequence[np.ndarray],
    calls: int,
    backward: bool,
) -> Callable[[], None]:
    """Some calls of one of `ATTENTIONS` in bfloat16, compiled on a GPU, which returns when they are done.

    Args:
        name: which.
        device: where.
        spans: starts and ends `[B, T]`.
        arrays: q, k, v and the gradient of the output, `[B, T, heads, head_dim]`.
        calls: how many.
        backward: whether the gradients for q, k and v are computed, too.
    """
    attention = ATTENTIONS[name]
    attend: Callable[..., Tensor] = attention.attend
    if device == "cuda":
        attend = torch.compile(attend)
    mask = attention.mask(*(torch.tensor(x, device=device) for x in spans))
    *inputs, d_out = (torch.tensor(x, device=device).bfloat16().transpose(1, 2) for x in arrays)
    inputs = [x.contiguous().requires_grad_(backward) for x in inputs]

    def iterate() -> None:
        for _ in range(calls):
            out = attend(*inputs, mask)
            if backward:
                torch.autograd.grad(out, inputs, d_out)
        if device == "cuda":
            torch.cuda.synchronize()

    return iterate
