"""Spans: the attention mask as one interval of keys per query.

For query i, `start[i]` is the first element of its document; `end[i]` is i + 1 for text and the end of its image
for a patch; padding attends itself alone. Causal text, bidirectional images, packed documents and padding are all
this one interval, so a mask costs O(T):

    element      BOS  a  BOI  p  p  EOI │ BOS  b │ pad
    index         0   1   2   3  4   5  │  6   7 │  8
    start         0   0   0   0  0   0  │  6   6 │  8
    end           1   2   3   5  5   6  │  7   8 │  9
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int


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
