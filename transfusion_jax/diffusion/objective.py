"""What the model learns of a noised image: to predict the noise in it (paper, section 2.2), or another target.

| objective | target | |
|---|---|---|
| epsilon | ε | arXiv 2006.11239 |
| v | signal_t ε − noise_t x_0 | arXiv 2202.00512 |
| x | x_0 | |
| flow | ε − x_0, on the straight line | arXiv 2209.03003 |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.diffusion.schedule import Path

Target = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
TARGETS: dict[str, Target] = {  # of (clean, noise, the clean image's weight at t, the noise's)
    "epsilon": lambda clean, noise, signal, sigma: noise,
    "v": lambda clean, noise, signal, sigma: signal * noise - sigma * clean,
    "x": lambda clean, noise, signal, sigma: clean,
    "flow": lambda clean, noise, signal, sigma: noise - clean,
}


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
        objective: an entry of `TARGETS`.

    Returns:
        The noised latents, the target and the timesteps.
    """

    def draw(key: Key[Array, ""], limit: Int[Array, ""]) -> tuple[Int[Array, ""], Float[Array, "h w c"]]:
        for_time, for_noise = jax.random.split(key)
        t = jnp.where(limit > 0, jax.random.randint(for_time, (), 1, jnp.maximum(limit, 1) + 1), 0)
        return t, jax.random.normal(for_noise, latents.shape[2:])

    timesteps, noise = jax.vmap(jax.vmap(draw))(keys, timestep_limit)
    target = TARGETS[objective](latents, noise, *schedule.weights(timesteps))
    return schedule.add_noise(latents, noise, timesteps), target, timesteps
