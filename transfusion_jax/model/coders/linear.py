"""The linear patch coder: a patch and its item's timestep to one vector, and hidden states back to patches."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import ModelConfig
from transfusion_jax.model.layers import dot, normal, param
from transfusion_jax.model.media import Media
from transfusion_jax.parallel.sharding import split

TIMESTEP_FEATURES = 256


class PatchCoder(nnx.Module):
    """One linear layer each way; the timestep's embedding is added to every patch vector (paper, footnote 6).

    The embedding is a two-layer MLP on sinusoids at the trunk's width, which gives the parameter shares of the
    paper's table 7 (0.5, 0.4, 0.4, 0.4 and 0.3 %).
    """

    def __init__(self, config: ModelConfig, *, key: Key[Array, ""]):
        self.config = config
        first, second, into, out = jax.random.split(key, 4)
        width, patch = config.width, config.patch_channels
        self.timestep_in = param(normal(first, (TIMESTEP_FEATURES, width), config), "features", "width")
        self.timestep_in_bias = param(jnp.zeros(width), "norm")
        self.timestep_out = param(normal(second, (width, width), config), "features", "width")
        self.timestep_out_bias = param(jnp.zeros(width), "norm")
        few_inputs = jax.random.normal(into, (patch, width)) / math.sqrt(patch)  # unit scale
        self.patch_in = param(few_inputs, "patch", "width")
        self.patch_in_bias = param(jnp.zeros(width), "norm")
        self.patch_out = param(normal(out, (width, patch), config), "width", "patch")
        self.patch_out_bias = param(jnp.zeros(patch), "patch")

    def encode(self, media: Media, timesteps: Int[Any, "B N"]) -> tuple[Float[Array, "B M W"], None]:
        """Patch vectors, and what `decode` needs besides (nothing here; skips in a U-Net).

        Args:
            media: noised.
            timesteps: of each item: 0 (clean) to the number of training timesteps.
        """
        patches = media.patches
        features = sinusoids(timesteps, TIMESTEP_FEATURES).astype(patches.dtype)
        hidden = jax.nn.silu(split(dot(features, self.timestep_in) + self.timestep_in_bias[...], "batch"))
        timestep = split(dot(hidden, self.timestep_out) + self.timestep_out_bias[...], "batch")
        return dot(patches, self.patch_in) + self.patch_in_bias[...] + media.spread(timestep), None

    def decode(
        self, hidden: Float[Array, "B M W"], media: Media, timesteps: Int[Any, "B N"], skips: None
    ) -> Float[Array, "B M values"]:
        """The model's prediction from hidden states of the patches."""
        del timesteps, skips  # a linear decoder needs neither
        patches = dot(hidden, self.patch_out)
        return (media.by_item(patches) + self.patch_out_bias[...]).reshape(patches.shape)

    @staticmethod
    def flops(config: ModelConfig, images: Any, patches: Any, pairs: Any) -> Any:
        """Operations both ways, forward; see `Model.flops`."""
        del pairs
        of_timesteps = 2.0 * (TIMESTEP_FEATURES + config.width) * config.width
        return 2.0 * 2 * config.patch_channels * config.width * patches + of_timesteps * images


def sinusoids(timesteps: Int[Any, "*lead"], features: int) -> Float[Array, "*lead {features}"]:
    """Sinusoidal features of timesteps, wavelengths from 2π to 20,000π (arXiv 2006.11239)."""
    frequency = 10_000.0 ** (-jnp.arange(features // 2) / (features // 2))
    angle = timesteps[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
