"""What a layer keeps from its forward pass for its backward one; what it does not keep it computes again."""

from __future__ import annotations

from collections.abc import Callable

from jax import checkpoint_policies as policies

from transfusion_jax.kernels.spans import OUTPUTS

Policy = Callable[..., bool]  # of jax.checkpoint


def none() -> None:
    """Everything is kept."""


def full() -> Policy:
    """Nothing is kept but the layer's input: the least memory."""
    return policies.nothing_saveable


def dots() -> Policy:
    """Matrix products and attention are kept, and all else is computed again."""
    return policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(OUTPUTS)
    )
