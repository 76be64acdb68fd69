"""Samplers over any subset of the timesteps: ancestral (DDPM, arXiv 2006.11239), and Euler's for rectified flow.

Both take the clean image from the model's prediction, whatever that is, and go from there: one kind of step, with
other weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax.diffusion.schedule import Path, Schedule, evenly, respace

Bounds = tuple[np.ndarray, np.ndarray]

CLEAN: dict[str, Callable] = {  # of (signal, noise) at t: the weights of x_t and of the prediction in x_0
    "epsilon": lambda signal, noise: (1 / signal, -noise / signal),
    "v": lambda signal, noise: (signal, -noise),
    "x": lambda signal, noise: (0 * signal, 0 * signal + 1),
    "flow": lambda signal, noise: (0 * signal + 1, -noise),
}


class Weights(NamedTuple):
    """The weights of one step's terms; arrays of several steps alike."""

    clean_from_x: np.ndarray
    clean_from_prediction: np.ndarray
    mean_from_clean: np.ndarray
    mean_from_x: np.ndarray
    std: np.ndarray


def posterior(alpha_bar: np.ndarray, alpha_bar_next: np.ndarray, objective: str = "epsilon") -> Weights:
    """From ᾱ_t and ᾱ_s, s < t: equations 6 and 7 of arXiv 2006.11239, with the posterior variance ("fixed small").

    In float64 on the host, for in float32 `1 − ᾱ` cancels at small t.
    """
    now, following = np.asarray(alpha_bar, np.float64), np.asarray(alpha_bar_next, np.float64)
    alpha = now / following
    from_x, from_prediction = CLEAN[objective](np.sqrt(now), np.sqrt(1 - now))
    return Weights(
        clean_from_x=from_x,
        clean_from_prediction=from_prediction,
        mean_from_clean=np.sqrt(following) * (1 - alpha) / (1 - now),
        mean_from_x=np.sqrt(alpha) * (1 - following) / (1 - now),
        std=np.sqrt((1 - following) / (1 - now) * (1 - alpha)),
    )


def euler(noise: np.ndarray, noise_next: np.ndarray) -> Weights:
    """Of a step along the predicted ε − x_0 on the straight line, from its noise at t and at s < t.

    `x + (noise_s − noise_t) prediction`, written as a mean of x and the clean image that it points to.
    """
    kept = np.asarray(noise_next, np.float64) / noise
    from_x, from_prediction = CLEAN["flow"](1 - noise, noise)
    return Weights(from_x, from_prediction, mean_from_clean=1 - kept, mean_from_x=kept, std=0 * kept)


def visits(schedule: Path, steps: int, objective: str) -> tuple[np.ndarray, Weights]:
    """The timesteps `[steps + 1]` that a sampler stops at, the last one 0, and the weights `[steps]` between them.

    Raises:
        ValueError: there are not so many timesteps.
    """
    if isinstance(schedule, Schedule):
        visited = respace(schedule.timesteps, steps)
        alpha_bar = schedule.alpha_bar[visited]
        return visited, posterior(alpha_bar[:-1], alpha_bar[1:], objective)
    visited = evenly(schedule.timesteps, steps)
    return visited, euler(schedule.noises[visited[:-1]], schedule.noises[visited[1:]])


def ancestral_step(
    x: jax.Array,
    prediction: jax.Array,
    fresh_noise: jax.Array,
    weights: Weights,
    bounds: Bounds | None = None,
) -> jax.Array:
    """A sample of the less noisy `x_s` from `x_t`.

    Args:
        x: `[…]`, at timestep t.
        prediction: the model's for x, of the objective that the weights are for.
        fresh_noise: standard normal, of x's shape; it has no weight in the step to s = 0, and none in Euler's.
        weights: scalars, from `posterior` or `euler`.
        bounds: lowest and highest value that a clean image can have; None leaves it as it is.
    """
    clean = weights.clean_from_x * x + weights.clean_from_prediction * prediction
    if bounds is not None:
        clean = jnp.clip(clean, *bounds)
    return weights.mean_from_clean * clean + weights.mean_from_x * x + weights.std * fresh_noise


def sample(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    keys: jax.Array,
    shape: tuple[int, ...],
    schedule: Path,
    steps: int,
    bounds: Bounds | None = None,
    objective: str = "epsilon",
) -> jax.Array:
    """Images drawn from noise.

    Args:
        predict: `(x [S, …], t scalar) → prediction [S, …]`.
        keys: `[S]` random keys, one per sample: a sample does not depend on its neighbours.
        shape: of one sample.
        schedule: the one trained with.
        steps: how many of its timesteps to visit.
        bounds: see `ancestral_step`.
        objective: what is predicted, an entry of `objective.TARGETS`.

    Returns:
        `[S, *shape]`, float32.
    """
    visited, weights = visits(schedule, steps, objective)
    weights = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), weights)

    def normal(index: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)

    def step(x: jax.Array, scanned: tuple) -> tuple[jax.Array, None]:
        index, t, weights = scanned
        return ancestral_step(x, predict(x, t), normal(index + 1), weights, bounds), None

    scanned = (jnp.arange(steps), jnp.asarray(visited[:-1]), weights)
    return jax.lax.scan(step, normal(jnp.int32(0)), scanned)[0]
