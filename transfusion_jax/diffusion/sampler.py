"""Ancestral sampling (DDPM, arXiv 2006.11239) over any subset of the timesteps."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax.diffusion.schedule import Schedule, respace

Bounds = tuple[np.ndarray, np.ndarray]


def ancestral_step(
    x: jax.Array,
    predicted_noise: jax.Array,
    fresh_noise: jax.Array,
    alpha_bar: jax.Array,
    alpha_bar_next: jax.Array,
    bounds: Bounds | None = None,
) -> jax.Array:
    """One step from `x_t` to a less noisy `x_s`, s < t: the posterior of arXiv 2006.11239, equations 6 and 7.

    Args:
        x: `[…]`, at timestep t.
        predicted_noise: the model's ε for x.
        fresh_noise: standard normal, of x's shape; not used in the step to s = 0.
        alpha_bar, alpha_bar_next: ᾱ_t and ᾱ_s, scalars.
        bounds: lowest and highest value that a clean image can have; None leaves it as it is.

    Returns:
        A sample of `x_s`, with the posterior variance ("fixed small").
    """
    clean = (x - jnp.sqrt(1 - alpha_bar) * predicted_noise) / jnp.sqrt(alpha_bar)
    if bounds is not None:
        clean = jnp.clip(clean, *bounds)
    alpha = alpha_bar / alpha_bar_next
    beta = 1 - alpha
    mean = (jnp.sqrt(alpha_bar_next) * beta * clean + jnp.sqrt(alpha) * (1 - alpha_bar_next) * x) / (1 - alpha_bar)
    variance = (1 - alpha_bar_next) / (1 - alpha_bar) * beta
    return mean + jnp.sqrt(variance) * fresh_noise


def sample(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    keys: jax.Array,
    shape: tuple[int, ...],
    schedule: Schedule,
    steps: int,
    bounds: Bounds | None = None,
) -> jax.Array:
    """Images drawn from noise.

    Args:
        predict: `(x [S, …], t scalar) → ε [S, …]`.
        keys: `[S]` random keys, one per sample: a sample does not depend on its neighbours.
        shape: of one sample.
        schedule: the one trained with.
        steps: how many of its timesteps to visit.
        bounds: see `ancestral_step`.

    Returns:
        `[S, *shape]`, float32.
    """
    visited = respace(schedule.timesteps, steps)
    alpha_bar = jnp.asarray(schedule.alpha_bar[visited], jnp.float32)

    def normal(index: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)

    def step(x: jax.Array, scanned: tuple) -> tuple[jax.Array, None]:
        index, t, now, following = scanned
        return ancestral_step(x, predict(x, t), normal(index + 1), now, following, bounds), None

    scanned = (jnp.arange(steps), jnp.asarray(visited[:-1]), alpha_bar[:-1], alpha_bar[1:])
    return jax.lax.scan(step, normal(jnp.int32(0)), scanned)[0]
