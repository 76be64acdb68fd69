"""How rotary frequencies change so that a model takes contexts longer than those it was pretrained on.

Each function takes the frequencies in radians per element, from the fastest on, and the config, and returns the
frequencies that are used.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from transfusion_jax.config import ModelConfig


def none(frequency: Float[Array, " half"], config: ModelConfig) -> Float[Array, " half"]:
    """Frequencies stay as they are."""
    del config
    return frequency


def linear(frequency: Float[Array, " half"], config: ModelConfig) -> Float[Array, " half"]:
    """All are divided by the factor: position interpolation (arXiv 2306.15595)."""
    return frequency / config.rope_factor


def llama3(frequency: Float[Array, " half"], config: ModelConfig) -> Float[Array, " half"]:
    """Slow ones are divided by the factor, fast ones stay, and those between are blended (Llama 3.1).

    A frequency counts as slow below `low` turns in the pretrained context, as fast above `high`; see
    `rope_frequency_factors` and `rope_original_context`.
    """
    low, high = config.rope_frequency_factors
    turns = config.rope_original_context * frequency / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequency + (1 - kept) * frequency / config.rope_factor
