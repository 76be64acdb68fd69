"""The cosine noise schedule (Nichol and Dhariwal, arXiv 2102.09672) and its respaced timesteps.

Timesteps run from 1 to T: `x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε`, and t = 0 is the clean image (ᾱ_0 = 1). diffusers
counts from 0, so its timestep is ours minus one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_BETA = 0.999


@dataclass(frozen=True)
class Schedule:
    """A noise schedule: `alpha_bar[t]` for t in 0 … T, float64."""

    alpha_bar: np.ndarray

    @property
    def timesteps(self) -> int:
        """T, the noisiest timestep."""
        return len(self.alpha_bar) - 1

    def signal(self, t: jax.Array) -> jax.Array:
        """√ᾱ_t, float32, of any shape of t."""
        return jnp.asarray(np.sqrt(self.alpha_bar), jnp.float32)[t]

    def noise(self, t: jax.Array) -> jax.Array:
        """√(1 − ᾱ_t), float32, of any shape of t."""
        return jnp.asarray(np.sqrt(1 - self.alpha_bar), jnp.float32)[t]

    def add_noise(self, clean: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """`x_t` for images `[…, h, w, c]` and timesteps `[…]`."""
        signal, sigma = (f(t)[..., None, None, None] for f in (self.signal, self.noise))
        return signal * clean + sigma * noise


def cosine(timesteps: int) -> Schedule:
    """ᾱ_t = f(t) / f(0) with f(t) = cos²((t/T + 0.008) / 1.008 · π/2), each β clipped at 0.999."""

    def f(t: int) -> float:
        return math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(t + 1) / f(t), LARGEST_BETA) for t in range(timesteps)]
    return Schedule(np.cumprod(np.concatenate([[1.0], 1 - np.asarray(betas)])))


def respace(timesteps: int, steps: int) -> np.ndarray:
    """The timesteps that a sampler of `steps` steps visits, noisiest first, and then 0: `[steps + 1]`.

    They are diffusers' "leading" spacing, which leaves out the very last timesteps: under a cosine schedule
    ᾱ_T is 2e-9, and dividing by its root would magnify an error of the predicted noise without bound.

    Raises:
        ValueError: `steps` is not between 1 and `timesteps`.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"sampling takes 1 to {timesteps} steps, not {steps}")
    return np.concatenate([np.arange(steps)[::-1] * (timesteps // steps) + 1, [0]])
