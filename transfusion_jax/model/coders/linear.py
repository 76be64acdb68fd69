"""The linear patch coder: latents and a timestep to one vector per patch, and hidden states back to latents."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import ModelConfig
from transfusion_jax.model.layers import dot, normal, param
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

    def encode(
        self, latents: Float[Array, "*lead h w c"], timesteps: Int[Any, "*lead"]
    ) -> tuple[Float[Array, "*lead P W"], None]:
        """Patch vectors, and what `decode` needs besides (nothing here; skips in a U-Net).

        Args:
            latents: noised.
            timesteps: 0 (clean) to the number of training timesteps.

        Returns:
            The vectors in row-major order, and None.
        """
        features = sinusoids(timesteps, TIMESTEP_FEATURES).astype(latents.dtype)
        hidden = jax.nn.silu(split(dot(features, self.timestep_in) + self.timestep_in_bias[...], "batch"))
        timestep = split(dot(hidden, self.timestep_out) + self.timestep_out_bias[...], "batch")
        patches = patchify(latents, self.config.patch_size)
        return dot(patches, self.patch_in) + self.patch_in_bias[...] + timestep[..., None, :], None

    def decode(
        self, hidden: Float[Array, "*lead P W"], timesteps: Int[Any, "*lead"], skips: None
    ) -> Float[Array, "*lead h w c"]:
        """The model's prediction from hidden states."""
        del timesteps, skips  # a linear decoder needs neither
        patches = dot(hidden, self.patch_out) + self.patch_out_bias[...]
        return unpatchify(patches, self.config.patch_size, self.config.latent_shape)

    @staticmethod
    def flops(config: ModelConfig) -> float:
        """Operations of one image, both ways, forward."""
        patches = 2.0 * 2 * config.patch_channels * config.width * config.patches
        return patches + 2.0 * (TIMESTEP_FEATURES + config.width) * config.width


def patchify(latents: Float[Any, "*lead h w c"], size: int) -> Float[Array, "*lead P C"]:
    """Squares of size × size places as vectors, left to right and top to bottom."""
    *lead, height, width, channels = latents.shape
    grid = latents.reshape(*lead, height // size, size, width // size, size, channels)
    return jnp.swapaxes(grid, -4, -3).reshape(*lead, -1, size * size * channels)


def unpatchify(
    patches: Float[Any, "*lead P C"], size: int, latent_shape: tuple[int, int, int]
) -> Float[Array, "*lead h w c"]:
    """The inverse of `patchify`."""
    height, width, channels = latent_shape
    lead = patches.shape[:-2]
    grid = patches.reshape(*lead, height // size, width // size, size, size, channels)
    return jnp.swapaxes(grid, -4, -3).reshape(*lead, height, width, channels)


def sinusoids(timesteps: Int[Any, "*lead"], features: int) -> Float[Array, "*lead {features}"]:
    """Sinusoidal features of timesteps, wavelengths from 2π to 20,000π (arXiv 2006.11239)."""
    frequency = 10_000.0 ** (-jnp.arange(features // 2) / (features // 2))
    angle = timesteps[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
