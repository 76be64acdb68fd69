"""The way from images to noise, which a noise schedule gives, and its timesteps: drawn, or visited by a sampler.

Timesteps run from 1 to T, and t = 0 is the clean image: `x_t = signal_t x_0 + noise_t ε`. On a diffusion's schedule
that is `√ᾱ_t x_0 + √(1 − ᾱ_t) ε`; diffusers counts from 0 there, so its timestep is ours minus one. On the straight
line of rectified flow it is `(1 − t/T) x_0 + (t/T) ε`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import NOISE_SCHEDULES, TIMESTEPS, DiffusionConfig


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

    def weights(self, t: Int[Any, "*t"], axes: int = 3) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """The image's and the noise's weight at each timestep, with so many axes of size 1 behind."""
        behind = tuple(range(-axes, 0))
        return jnp.expand_dims(self.signal(t), behind), jnp.expand_dims(self.noise(t), behind)

    def add_noise(
        self, clean: Float[Any, "*shape"], noise: Float[Any, "*shape"], t: Int[Any, "*t"]
    ) -> Float[Array, "*shape"]:
        """`x_t` of each image, or of each patch."""
        signal, sigma = self.weights(t, clean.ndim - jnp.ndim(t))
        return signal * clean + sigma * noise

    def shift(
        self, t: Float[Any, "*t"], by: Float[Any, "*t"] | float, interp: Callable[..., Any] = jnp.interp
    ) -> Float[Any, "*t"]:
        """The timesteps at which there is `by` times as much noise beside the image as at t; 0 and T stay.

        With φ the noise's share of `signal + noise`, relative to that at T, φ' = by · φ / (1 + (by − 1) φ). On the
        straight line φ is t / T, and this is the shift of Stable Diffusion 3 (arXiv 2403.03206, equation 23). On
        every path the log SNR falls by 2 log(by), as in arXiv 2301.11093, but for what little image is left at T.

        Args:
            t: from 0 to T, whole or not; φ is linear between whole timesteps.
            by: above zero, see `DiffusionConfig.shift`.
            interp: `np.interp` for float64 on the host.
        """
        share = self.noises / (self.signals + self.noises)
        share, points = share / share[-1], np.arange(len(share), dtype=share.dtype)
        here = interp(t, points, share)
        return interp(by * here / (1 + (by - 1) * here), share, points)


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


def draw_timestep(
    key: Key[Array, ""],
    limit: Int[Any, ""],
    elements: Int[Any, ""],
    path: Path,
    config: DiffusionConfig,
) -> Int[Array, ""]:
    """The timestep that an image is trained at: one of 1 … limit, or 0, clean, where the limit is 0.

    With u from the config's distribution over (0, 1), 1 being noise alone, and u' the shift of u (`path.shift` of
    u · T, over T) by the number of the image's elements, t is u' · limit, rounded up. So t = k has the probability
    of u' in ((k − 1) / limit, k / limit], and a limit below T squeezes the whole distribution into 1 … limit.
    Uniform timesteps that are not shifted are drawn as the whole numbers that they are.
    """
    most = jnp.maximum(limit, 1)
    if config.timestep_distribution == "uniform" and not config.timestep_base:
        t = jax.random.randint(key, (), 1, most + 1)
    else:
        u = TIMESTEPS[config.timestep_distribution](key, config)
        if config.timestep_base:
            u = path.shift(u * path.timesteps, config.shift(elements)) / path.timesteps
        t = jnp.clip(jnp.ceil(u * most).astype(jnp.int32), 1, most)
    return jnp.where(limit > 0, t, 0)


def evenly(
    timesteps: int, steps: int, move: Callable[[Float[np.ndarray, " _"]], Float[np.ndarray, " _"]] = np.asarray
) -> Int[np.ndarray, " _"]:
    """`steps + 1` timesteps from T to 0, as even as whole numbers are: diffusers' "trailing" spacing.

    So it begins at noise alone, as the image that is drawn does, whatever the number of steps (arXiv 2305.08891).

    Args:
        timesteps: T.
        steps: how many to visit before 0.
        move: where each goes before it is rounded, 0 and T to themselves; then they stay at least one apart.

    Raises:
        ValueError: `steps` is not between 1 and `timesteps`.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"sampling takes 1 to {timesteps} steps, not {steps}")
    passed = np.arange(steps + 1)
    visited = np.round(move(np.linspace(timesteps, 0, steps + 1))).astype(np.int64) + passed
    return np.minimum(np.maximum.accumulate(visited[::-1])[::-1], timesteps) - passed
