"""Noise schedules: each function makes one of T timesteps."""

from __future__ import annotations

import math

import numpy as np

from transfusion_jax.diffusion.schedule import Schedule, StraightLine

LARGEST_BETA = 0.999
FIRST_BETA, LAST_BETA, BETAS = 1e-4, 0.02, 1000  # of DDPM, and for how many timesteps


def cosine(timesteps: int) -> Schedule:
    """Cosine (arXiv 2102.09672).

    ᾱ_t = f(t) / f(0), f(t) = cos²((t/T + 0.008) / 1.008 · π/2), each β clipped at 0.999.
    """

    def f(t: int) -> float:
        return math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(t + 1) / f(t), LARGEST_BETA) for t in range(timesteps)]
    return Schedule(np.cumprod(np.concatenate([[1.0], 1 - np.asarray(betas)])))


def linear(timesteps: int) -> Schedule:
    """Evenly rising β, from 1e-4 to 0.02 over 1,000 timesteps (arXiv 2006.11239).

    Of T timesteps each β is 1000/T as large, so that ᾱ_T hardly depends on T. With 20 timesteps or fewer the last β
    would not be below one: the config refuses.
    """
    betas = np.linspace(FIRST_BETA, LAST_BETA, timesteps) * (BETAS / timesteps)
    return Schedule(np.cumprod(np.concatenate([[1.0], 1 - betas])))


def straight(timesteps: int) -> StraightLine:
    """The straight line of rectified flow (arXiv 2209.03003): `(1 − t/T) x_0 + (t/T) ε`."""
    noises = np.arange(timesteps + 1) / timesteps
    return StraightLine(1 - noises, noises)
