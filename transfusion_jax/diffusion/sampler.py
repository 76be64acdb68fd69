"""Ancestral sampling (DDPM, arXiv 2006.11239) over any subset of the timesteps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax.diffusion.schedule import Schedule, respace

Bounds = tuple[np.ndarray, np.ndarray]


class Posterior(NamedTuple):
    """The weights of one step's terms; arrays of several steps alike."""

    clean_from_x: np.ndarray
    clean_from_noise: np.ndarray
    mean_from_clean: np.ndarray
    mean_from_x: np.ndarray
    std: np.ndarray


def posterior(alpha_bar: np.ndarray, alpha_bar_next: np.ndarray) -> Posterior:
    """From ᾱ_t and ᾱ_s, s < t: equations 6 and 7 of arXiv 2006.11239, with the posterior variance ("fixed small").

    In float64 on the host, for in float32 `1 − ᾱ` cancels at small t.
    """
    now, following = np.asarray(alpha_bar, np.float64), np.asarray(alpha_bar_next, np.float64)
    alpha = now / following
    return Posterior(
        clean_from_x=1 / np.sqrt(now),
        clean_from_noise=-np.sqrt(1 - now) / np.sqrt(now),
        mean_from_clean=np.sqrt(following) * (1 - alpha) / (1 - now),
        mean_from_x=np.sqrt(alpha) * (1 - following) / (1 - now),
        std=np.sqrt((1 - following) / (1 - now) * (1 - alpha)),
    )


def ancestral_step(
    x: jax.Array,
    predicted_noise: jax.Array,
    fresh_noise: jax.Array,
    weights: Posterior,
    bounds: Bounds | None = None,
) -> jax.Array:
    """A sample of the less noisy `x_s` from `x_t`.

    Args:
        x: `[…]`, at timestep t.
        predicted_noise: the model's ε for x.
        fresh_noise: standard normal, of x's shape; it has no weight in the step to s = 0.
        weights: scalars, from `posterior`.
        bounds: lowest and highest value that a clean image can have; None leaves it as it is.
    """
    clean = weights.clean_from_x * x + weights.clean_from_noise * predicted_noise
    if bounds is not None:
        clean = jnp.clip(clean, *bounds)
    return weights.mean_from_clean * clean + weights.mean_from_x * x + weights.std * fresh_noise


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
    alpha_bar = schedule.alpha_bar[visited]
    weights = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), posterior(alpha_bar[:-1], alpha_bar[1:]))

    def normal(index: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)

    def step(x: jax.Array, scanned: tuple) -> tuple[jax.Array, None]:
        index, t, weights = scanned
        return ancestral_step(x, predict(x, t), normal(index + 1), weights, bounds), None

    scanned = (jnp.arange(steps), jnp.asarray(visited[:-1]), weights)
    return jax.lax.scan(step, normal(jnp.int32(0)), scanned)[0]
