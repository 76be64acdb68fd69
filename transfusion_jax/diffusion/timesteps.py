"""Distributions of timesteps in training: each function draws one number from 0, clean, to 1, noise alone.

`schedule.draw_timestep` makes a timestep of it.
"""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, Key

from transfusion_jax.config import DiffusionConfig


def uniform(key: Key[Array, ""], config: DiffusionConfig) -> Float[Array, ""]:
    """Every amount of noise alike, as in the paper."""
    del config
    return jax.random.uniform(key)


def logit_normal(key: Key[Array, ""], config: DiffusionConfig) -> Float[Array, ""]:
    """A normal's sigmoid: most often half of both (arXiv 2403.03206, 3.1)."""
    return jax.nn.sigmoid(config.timestep_mean + config.timestep_deviation * jax.random.normal(key))


def beta(key: Key[Array, ""], config: DiffusionConfig) -> Float[Array, ""]:
    """Beta: by default more of the noisy ones, as for chunks of actions (arXiv 2410.24164)."""
    return jax.random.beta(key, *config.timestep_beta)
