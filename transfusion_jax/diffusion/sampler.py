"""Samplers over any subset of the timesteps, each a table of weights.

Every one takes the clean image from the model's prediction, whatever that is, and goes on to a weighted sum of that
image, the one of the evaluation before, the noised image and fresh noise: one kind of step, with other weights.

| name | path | |
|---|---|---|
| ancestral | diffusion | DDPM, arXiv 2006.11239 |
| ddim | diffusion | arXiv 2010.02502, η = 0 |
| dpm++ | diffusion | DPM-Solver++ (2M), arXiv 2211.01095 |
| euler | straight line | first order |
| heun | straight line | second order; asks the model twice at every timestep but the first |
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import OBJECTIVES, DiffusionConfig, SamplingConfig
from transfusion_jax.diffusion.schedule import Path, Schedule, evenly

Bounds = tuple[np.ndarray, np.ndarray]

LEAST_SIGNAL = 0.03  # signal over noise below which ε is not evaluated; measured, see docs/decisions.md


class Weights(NamedTuple):
    """The weights of one step's terms; arrays of several steps alike."""

    clean_from_x: Float[Any, "*E"]
    clean_from_prediction: Float[Any, "*E"]
    onward_from_clean: Float[Any, "*E"]
    onward_from_previous: Float[Any, "*E"]  # the clean image of the evaluation before
    onward_from_x: Float[Any, "*E"]
    std: Float[Any, "*E"]


class SamplerSteps(NamedTuple):
    """A sampler's way to the clean image: one entry for each evaluation of the model, or for each of each image."""

    timesteps: Int[Any, "E ..."]  # where x stands
    asked: Int[Any, "E ..."]  # the timestep that the model is given, see `noisiest_asked`
    weights: Weights  # what comes of its answer


def sampler_steps(path: Path, diffusion: DiffusionConfig, sampling: SamplingConfig, elements: int) -> SamplerSteps:
    """The sampler's steps for an image of this many elements, from the two configs; see `make_steps`."""
    shift = diffusion.shift(elements) if sampling.spacing == "auto" else 1.0
    return make_steps(path, sampling.steps, diffusion.objective, sampling.sampler, shift)


def make_steps(
    path: Path, steps: int, objective: str = "epsilon", sampler: str = "auto", shift: float = 1.0
) -> SamplerSteps:
    """The way of a sampler from noise alone, at T, to the clean image at 0.

    In float64 on the host, for in float32 `1 − ᾱ` cancels at small t.

    Args:
        path: the schedule trained with.
        steps: how many of its timesteps to visit, T the first of them.
        objective: what is predicted, an entry of `OBJECTIVES`.
        sampler: one of the path's; "auto" is the first of them.
        shift: of the timesteps, see `Path.shift`; 1 leaves them even.

    Raises:
        ValueError: there are not so many timesteps, or no such sampler of this path.
    """
    known = samplers_of(path)
    if sampler not in ("auto", *known):
        raise ValueError(f"no sampler {sampler!r} of this schedule: one of {', '.join(known)}")
    shifted = functools.partial(path.shift, by=shift, interp=np.interp)
    visited = evenly(path.timesteps, steps) if shift == 1 else evenly(path.timesteps, steps, shifted)
    if sampler == "heun":
        visited = np.concatenate([visited[:1], np.repeat(visited[1:-1], 2), visited[-1:]])
    asked = np.minimum(visited[:-1], noisiest_asked(path, objective))
    from_x, from_prediction = clean_weights(objective, path.signals[asked], path.noises[asked])
    moves = known[next(iter(known)) if sampler == "auto" else sampler]
    onward = moves(path.signals[visited], path.noises[visited])
    return SamplerSteps(visited[:-1], asked, Weights(from_x, from_prediction, *onward))


def clean_weights(
    objective: str, signal: Float[Any, "*E"], noise: Float[Any, "*E"]
) -> tuple[Float[Any, "*E"], Float[Any, "*E"]]:
    """The weights of x_t and of the prediction in x_0, at timesteps with these weights of image and noise.

    The prediction is `a x_0 + b ε`, and x_t is `signal x_0 + noise ε`: two equations for x_0.
    """
    a, b = (OBJECTIVES[objective](clean, 1.0 - clean, signal, noise) for clean in (1.0, 0.0))
    determinant = b * signal - a * noise
    return b / determinant, -noise / determinant


def noisiest_asked(path: Path, objective: str) -> int:
    """The noisiest timestep that the model is evaluated at: T, unless it predicts ε.

    The clean image that an ε points to is `(x − noise ε) / signal`. Towards T there is hardly any signal: at the
    end of a cosine schedule a mistake grows 20,000-fold, and a model's ε is never quite right. But up to
    `LEAST_SIGNAL` x is noise and little else, so the model is asked there as if x had come that far. DPM-Solver
    begins at a signal of 0.008 for the same reason; here x moves from T on, and misses nothing of the images' mean.
    """
    if objective != "epsilon":
        return path.timesteps
    ratios = path.signals[1:] / path.noises[1:]
    return 1 + int(np.abs(np.log(ratios / LEAST_SIGNAL)).argmin())


def samplers_of(path: Path) -> dict[str, Moves]:
    """The samplers of a path by name, the default one first."""
    return DIFFUSION if isinstance(path, Schedule) else STRAIGHT


def take_step(
    x: Float[Any, "*x"],
    previous: Float[Any, "*x"],
    prediction: Float[Any, "*x"],
    fresh_noise: Float[Any, "*x"],
    weights: Weights,
    bounds: Bounds | None = None,
) -> tuple[Float[Any, "*x"], Float[Any, "*x"]]:
    """The less noisy image that a step leads to, and the clean one that it pointed to.

    Args:
        x: at timestep t.
        previous: the clean image of the step before; it has no weight in the first.
        prediction: the model's for x, of the objective that the weights are for.
        fresh_noise: standard normal, of x's shape; only an ancestral step but the last gives it weight.
        weights: scalars, from `make_steps`.
        bounds: lowest and highest value that a clean image can have; None leaves it as it is.
    """
    clean = weights.clean_from_x * x + weights.clean_from_prediction * prediction
    if bounds is not None:
        clean = jnp.clip(clean, *bounds)
    kept = weights.onward_from_previous * previous + weights.onward_from_x * x
    return weights.onward_from_clean * clean + kept + weights.std * fresh_noise, clean


def sample(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    keys: Key[Array, " S"],
    shape: tuple[int, ...],
    steps: SamplerSteps,
    bounds: Bounds | None = None,
) -> Float[Array, "S ..."]:
    """Images drawn from noise.

    Args:
        predict: `(x [S, …], t scalar) → prediction [S, …]`.
        keys: random keys, one per sample: a sample does not depend on its neighbours.
        shape: of one sample.
        steps: from `make_steps`.
        bounds: see `take_step`.

    Returns:
        Samples in float32.
    """

    def step(carry: tuple, scanned: tuple) -> tuple[tuple, None]:
        (x, previous), (index, (_, t, weights)) = carry, scanned
        return take_step(x, previous, predict(x, t), normal_noise(keys, index + 1, shape), weights, bounds), None

    x = normal_noise(keys, jnp.int32(0), shape)
    scanned = jnp.arange(len(steps.timesteps)), on_device(steps)
    return jax.lax.scan(step, (x, jnp.zeros_like(x)), scanned)[0][0]


def normal_noise(
    keys: Key[Array, " S"], index: Int[Any, ""] | int, shape: tuple[int, ...]
) -> Float[Array, "S ..."]:
    """Standard normal noise, the index-th of each key: 0 to begin with, then one for each step."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def on_device(steps: SamplerSteps) -> SamplerSteps:
    """Timesteps as int32, weights as float32."""
    weights = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), steps.weights)
    return SamplerSteps(jnp.asarray(steps.timesteps, jnp.int32), jnp.asarray(steps.asked, jnp.int32), weights)


Onward = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # the last four of `Weights`
Moves = Callable[[np.ndarray, np.ndarray], Onward]  # of the visited timesteps' signals and noises


def ancestral(signal: Float[np.ndarray, " visited"], noise: Float[np.ndarray, " visited"]) -> Onward:
    """Equations 6 and 7 of arXiv 2006.11239, with the posterior variance ("fixed small")."""
    alpha_bar, following = np.square(signal[:-1]), np.square(signal[1:])
    alpha = alpha_bar / following
    from_clean = signal[1:] * (1 - alpha) / (1 - alpha_bar)
    from_x = np.sqrt(alpha) * (1 - following) / (1 - alpha_bar)
    std = np.sqrt((1 - following) / (1 - alpha_bar) * (1 - alpha))
    return from_clean, 0 * std, from_x, std


def direct(signal: Float[np.ndarray, " visited"], noise: Float[np.ndarray, " visited"]) -> Onward:
    """To the next timestep with the noise that x is now said to hold: DDIM, and Euler's on a straight line."""
    from_x = noise[1:] / noise[:-1]
    return signal[1:] - signal[:-1] * from_x, 0 * from_x, from_x, 0 * from_x


def multistep(signal: Float[np.ndarray, " visited"], noise: Float[np.ndarray, " visited"]) -> Onward:
    """The same towards where the last two clean images point, in log SNR; the first and last step are `direct`."""
    from_clean, _, from_x, none = direct(signal, noise)
    with np.errstate(divide="ignore"):
        log_snr = np.log(signal) - np.log(noise)
    ahead = 0 * none
    ahead[1:-1] = np.diff(log_snr)[1:-1] / np.diff(log_snr)[:-2] / 2
    return from_clean * (1 + ahead), -from_clean * ahead, from_x, none


def heun(signal: Float[np.ndarray, " visited"], noise: Float[np.ndarray, " visited"]) -> Onward:
    """Euler's step, and from where it led, a correction: half of it is taken with the slope found there.

    A slope is `(x − clean) / noise`, and both clean images lie on lines through the x that Euler's step led to.
    """
    from_clean, from_previous, from_x, none = direct(signal, noise)
    corrects = np.flatnonzero(noise[1:] == noise[:-1])
    half = (noise[corrects - 1] - noise[corrects]) / noise[corrects] / 2
    from_clean[corrects], from_previous[corrects] = half, -half
    return from_clean, from_previous, from_x, none


DIFFUSION: dict[str, Moves] = {"ancestral": ancestral, "ddim": direct, "dpm++": multistep}
STRAIGHT: dict[str, Moves] = {"euler": direct, "heun": heun}
