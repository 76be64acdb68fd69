"""Images as the model sees them in training: noised, with what it is to predict (see `objectives`)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import OBJECTIVES
from transfusion_jax.diffusion.schedule import Path


def image_keys(key: Key[Array, ""], rows: Int[Any, " B"], images: int) -> Key[Array, "B {images}"]:
    """Random keys, a function of the run's key, the row's number and the image's slot alone."""
    slots = jnp.arange(images)
    return jax.vmap(
        lambda row: jax.vmap(lambda slot: jax.random.fold_in(jax.random.fold_in(key, row), slot))(slots)
    )(rows)


def corrupt(
    keys: Key[Array, "B N"],
    latents: Float[Any, "B N h w c"],
    timestep_limit: Int[Any, "B N"],
    schedule: Path,
    objective: str = "epsilon",
) -> tuple[Float[Array, "B N h w c"], Float[Array, "B N h w c"], Int[Array, "B N"]]:
    """Noises each image at a timestep of its own.

    Args:
        keys: random keys.
        latents: clean and normalised.
        timestep_limit: t is uniform over 1 … limit, and a limit of 0 leaves the image clean.
        schedule: the noise schedule.
        objective: an entry of `OBJECTIVES`.

    Returns:
        The noised latents, the target and the timesteps.
    """

    def draw(key: Key[Array, ""], limit: Int[Array, ""]) -> tuple[Int[Array, ""], Float[Array, "h w c"]]:
        for_time, for_noise = jax.random.split(key)
        t = jnp.where(limit > 0, jax.random.randint(for_time, (), 1, jnp.maximum(limit, 1) + 1), 0)
        return t, jax.random.normal(for_noise, latents.shape[2:])

    timesteps, noise = jax.vmap(jax.vmap(draw))(keys, timestep_limit)
    target = OBJECTIVES[objective](latents, noise, *schedule.weights(timesteps))
    return schedule.add_noise(latents, noise, timesteps), target, timesteps
