"""Images as the model sees them in training: noised, with what it is to predict (see `objectives`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transfusion_jax.config import OBJECTIVES
from transfusion_jax.diffusion.schedule import Path


def image_keys(key: jax.Array, rows: jax.Array, images: int) -> jax.Array:
    """Random keys `[B, N]`, a function of the run's key, the row's number and the image's slot alone."""
    slots = jnp.arange(images)
    return jax.vmap(
        lambda row: jax.vmap(lambda slot: jax.random.fold_in(jax.random.fold_in(key, row), slot))(slots)
    )(rows)


def corrupt(
    keys: jax.Array, latents: jax.Array, timestep_limit: jax.Array, schedule: Path, objective: str = "epsilon"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Noises each image at a timestep of its own.

    Args:
        keys: `[B, N]` random keys.
        latents: `[B, N, h, w, c]`, clean and normalised.
        timestep_limit: `[B, N]`; t is uniform over 1 … limit, and a limit of 0 leaves the image clean.
        schedule: the noise schedule.
        objective: an entry of `OBJECTIVES`.

    Returns:
        The noised latents, the target (of their shape) and the timesteps `[B, N]`.
    """

    def draw(key: jax.Array, limit: jax.Array) -> tuple[jax.Array, jax.Array]:
        for_time, for_noise = jax.random.split(key)
        t = jnp.where(limit > 0, jax.random.randint(for_time, (), 1, jnp.maximum(limit, 1) + 1), 0)
        return t, jax.random.normal(for_noise, latents.shape[2:])

    timesteps, noise = jax.vmap(jax.vmap(draw))(keys, timestep_limit)
    target = OBJECTIVES[objective](latents, noise, *schedule.weights(timesteps))
    return schedule.add_noise(latents, noise, timesteps), target, timesteps
