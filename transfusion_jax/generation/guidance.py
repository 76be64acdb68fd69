"""Classifier-free guidance (arXiv 2207.12598): what several branches predict, as one weighted sum.

The branches go through the model in one pass, each with a cache of its own.

| branches | sees | |
|---|---|---|
| 1 | the prompt | no guidance |
| 2 | the prompt; nothing but `BOS BOI` | |
| 3 | the prompt; its images alone; nothing | texts and images apart, as in arXiv 2211.09800 |
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from transfusion_jax.config import Config, SamplingConfig


def branches_of(sampling: SamplingConfig, pictured: bool) -> int:
    """How many branches there are, for prompts with images or without."""
    text, image = sampling.guidance, sampling.image_guidance
    if pictured and image not in (0, text):
        return 3
    return 1 if text == 1 else 2


def untrained_branch(config: Config, sampling: SamplingConfig | None = None) -> list[str]:
    """A warning where guidance needs a branch, images with nothing before them, that was not trained.

    Pairs that lose their caption train it at every t, and pairs whose image comes first up to their limit.

    Args:
        config: the run's.
        sampling: how images are drawn; by default the config's.
    """
    sampling, data, most = sampling or config.sampling, config.data, config.diffusion.timesteps
    if config.model.images == "none" or branches_of(sampling, pictured=True) == 1:
        return []
    trained = config.diffusion.image_first_limit if data.image_first else 0
    if data.caption_dropout and data.image_first < 1:
        trained = most
    if sampling.guidance_interval[1] * most <= trained:
        return []
    where = f"above t = {trained} of {most}" if trained else "at all"
    return [
        f"guidance {sampling.guidance:g} needs training on images with nothing before them, and this run has none "
        f"{where} (data.caption_dropout {data.caption_dropout:g}, data.image_first {data.image_first:g}): draw "
        "with guidance 1, or train with data.caption_dropout=0.1"
    ]


def branch_weights(
    sampling: SamplingConfig, branches: int, noisiness: Float[np.ndarray, "E ..."]
) -> Float[np.ndarray, "E ..."]:
    """The weights of the branches at each evaluation of the model.

    Args:
        sampling: the scales, and the interval that they act in.
        branches: how many there are.
        noisiness: t / T of each evaluation, or of each evaluation of each image, `[E, S]`.

    Returns:
        The same with an axis for the branches behind.
    """
    text, image = sampling.guidance, sampling.image_guidance
    guided = {1: (1.0,), 2: (text, 1 - text), 3: (text, image - text, 1 - image)}[branches]
    plain = (1.0,) + (0.0,) * (branches - 1)
    low, high = sampling.guidance_interval
    acts = (low <= noisiness) & (noisiness <= high)
    return np.where(acts[..., None], guided, plain).astype(np.float32)


def combine_branches(
    predictions: Float[Array, "_ ..."],
    weights: Float[Any, "*S branches"],
    rescale: Shaped[Any, ""] | float,
    there: Bool[Array, "S ..."] | None = None,
) -> Float[Array, "S ..."]:
    """One prediction of the branches', the first branch's first.

    Args:
        predictions: what the model predicts.
        weights: of the branches, for all images or for each.
        rescale: 0 to 1, how far each is brought back to the first branch's deviation (arXiv 2305.08891).
        there: which of the values are an image's own, where there is room for more; None: all.
    """
    branches = weights.shape[-1]
    by_branch = predictions.reshape(branches, -1, *predictions.shape[1:])
    if weights.ndim == 1:
        guided = jnp.tensordot(weights, by_branch, 1)
    else:
        guided = jnp.einsum("sb,bs...->s...", weights, by_branch)
    if branches == 1:
        return guided
    axes = tuple(range(1, guided.ndim))

    def deviation(x: Float[Array, "S ..."]) -> Float[Array, "S ..."]:
        return jnp.std(x, axes, keepdims=True, where=there)

    ratio = deviation(by_branch[0]) / jnp.maximum(deviation(guided), 1e-12)
    return guided * (rescale * ratio + (1 - rescale))
