"""The way from images to noise, which a noise schedule gives, and the timesteps that a sampler visits.

Timesteps run from 1 to T, and t = 0 is the clean image: `x_t = signal_t x_0 + noise_t ε`. On a diffusion's schedule
that is `√ᾱ_t x_0 + √(1 − ᾱ_t) ε`; diffusers counts from 0 there, so its timestep is ours minus one. On the straight
line of rectified flow it is `(1 − t/T) x_0 + (t/T) ε`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transfusion_jax.config import NOISE_SCHEDULES, DiffusionConfig


class Path:
    """How much of the image and how much noise there is at each timestep."""

    signals: Float[np.ndarray, " points"]  # float64, of 0 to T
    noises: Float[np.ndarray, " points"]  # float64, of 0 to T

    @property
    def timesteps(self) -> int:
        """T, the noisiest timestep."""
        return len(self.signals) - 1

    def signal(self, t: Int[Any, "*t"]) -> Float[Array, "*t"]:
        """The image's weight, float32, for any shape of t."""
        return jnp.asarray(self.signals, jnp.float32)[t]

    def noise(self, t: Int[Any, "*t"]) -> Float[Array, "*t"]:
        """The noise's weight, float32, for any shape of t."""
        return jnp.asarray(self.noises, jnp.float32)[t]

    def weights(self, t: Int[Any, "*t"]) -> tuple[Float[Array, "*t 1 1 1"], Float[Array, "*t 1 1 1"]]:
        """The image's and the noise's weight at each timestep, to multiply images by."""
        return self.signal(t)[..., None, None, None], self.noise(t)[..., None, None, None]

    def add_noise(
        self, clean: Float[Any, "*t h w c"], noise: Float[Any, "*t h w c"], t: Int[Any, "*t"]
    ) -> Float[Array, "*t h w c"]:
        """`x_t` of each image."""
        signal, sigma = self.weights(t)
        return signal * clean + sigma * noise


@dataclass(frozen=True)
class Schedule(Path):
    """A diffusion's schedule: `alpha_bar[t]` for t in 0 … T, float64."""

    alpha_bar: Float[np.ndarray, " points"]

    @cached_property
    def signals(self) -> Float[np.ndarray, " points"]:  # type: ignore[override]
        """√ᾱ."""
        return np.sqrt(self.alpha_bar)

    @cached_property
    def noises(self) -> Float[np.ndarray, " points"]:  # type: ignore[override]
        """√(1 − ᾱ)."""
        return np.sqrt(1 - self.alpha_bar)


@dataclass(frozen=True)
class StraightLine(Path):
    """Rectified flow's straight line from image to noise (arXiv 2209.03003)."""

    signals: Float[np.ndarray, " points"]
    noises: Float[np.ndarray, " points"]


def make_schedule(config: DiffusionConfig) -> Path:
    """The schedule that a run trains and samples with."""
    path: Path = NOISE_SCHEDULES[config.resolved_schedule](config.timesteps)
    return path


def evenly(timesteps: int, steps: int) -> Int[np.ndarray, " _"]:
    """`steps + 1` timesteps from T to 0, as even as whole numbers are: diffusers' "trailing" spacing.

    So it begins at noise alone, as the image that is drawn does, whatever the number of steps (arXiv 2305.08891).

    Raises:
        ValueError: `steps` is not between 1 and `timesteps`.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"sampling takes 1 to {timesteps} steps, not {steps}")
    return np.round(np.linspace(timesteps, 0, steps + 1)).astype(np.int64)
