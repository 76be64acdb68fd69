"""What the model predicts of a noised image `signal · clean + sigma · noise`: a sum of clean image and noise.

Each function takes both and their weights at t, and is linear in both, so that the clean image follows from it.
"""

from __future__ import annotations

from typing import Any

Values = Any  # arrays of one kind, JAX's or NumPy's, or numbers; the four of a call broadcast


def epsilon(clean: Values, noise: Values, signal: Values, sigma: Values) -> Values:
    """The noise ε (arXiv 2006.11239)."""
    return noise


def v(clean: Values, noise: Values, signal: Values, sigma: Values) -> Values:
    """The velocity `signal ε − sigma x_0` (arXiv 2202.00512)."""
    return signal * noise - sigma * clean


def x(clean: Values, noise: Values, signal: Values, sigma: Values) -> Values:
    """The clean image x_0."""
    return clean


def flow(clean: Values, noise: Values, signal: Values, sigma: Values) -> Values:
    """The direction `ε − x_0` of rectified flow's straight line (arXiv 2209.03003)."""
    return noise - clean
