"""Optimizers without their learning rate, by which the step multiplies.

Each function takes the settings and a tree that says which parameters decay, and makes an optax transformation.
"""

from __future__ import annotations

from typing import Any

import optax

from transfusion_jax.config import OptimizerConfig


def adamw(config: OptimizerConfig, decayed: Any) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101)."""
    return optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=config.first_moment),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
