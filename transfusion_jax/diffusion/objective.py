"""Items as the model sees them in training: noised, with what it is to predict (see `objectives`)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import OBJECTIVES, DiffusionConfig, ModelConfig
from transfusion_jax.diffusion.schedule import Path, draw_timestep
from transfusion_jax.model.media import Media


def image_keys(key: Key[Array, ""], rows: Int[Any, " B"], images: int) -> Key[Array, "B {images}"]:
    """Random keys, a function of the run's key, the row's number and the image's slot alone."""
    slots = jnp.arange(images)
    return jax.vmap(
        lambda row: jax.vmap(lambda slot: jax.random.fold_in(jax.random.fold_in(key, row), slot))(slots)
    )(rows)


def corrupt(
    keys: Key[Array, "B N"], media: Media, model: ModelConfig, diffusion: DiffusionConfig, schedule: Path
) -> tuple[Media, Float[Array, "B ..."], Int[Array, "B N"]]:
    """Noises each item at a timestep of its own, see `draw_timestep`; one whose limit is 0 stays clean.

    Args:
        keys: random keys.
        media: clean and normalised.
        model: knows the sizes of patches and items.
        diffusion: the objective, and how timesteps are drawn.
        schedule: the noise schedule.

    Returns:
        The noised items, their targets as `Media.unpack` gives values, and the timesteps.
    """

    def draw(key: Key[Array, ""], limit: Int[Array, ""], size: Int[Array, ""]) -> Int[Array, ""]:
        return draw_timestep(key, limit, size, schedule, diffusion)

    split = jax.vmap(jax.vmap(jax.random.split))(keys)
    timesteps = jax.vmap(jax.vmap(draw))(split[..., 0], jnp.asarray(media.timestep_limit), media.sizes)
    clean, noise = media.unpack(media.patches, model), item_noise(split[..., 1], media, model)
    times = timesteps if media.one_size else media.spread(timesteps)
    target = OBJECTIVES[diffusion.objective](clean, noise, *schedule.weights(times, clean.ndim - times.ndim))
    noised = media.pack(schedule.add_noise(clean, noise, times), model)
    return replace(media, patches=noised), target, timesteps


def item_noise(keys: Key[Array, "B N"], media: Media, model: ModelConfig) -> Float[Array, "B ..."]:
    """Normal noise as `Media.unpack` gives values: one flat draw for each item.

    It is in the order (time, height, width, channel) of the item's values. The room for other items and larger ones
    changes nothing: JAX's draw of n numbers begins as its draw of fewer.
    """
    k, shape = model.patch_size, model.latent_shape
    if media.one_size:
        return jax.vmap(jax.vmap(lambda key: jax.random.normal(key, shape)))(keys)
    rows, most = len(keys), min(math.prod(shape), math.prod(media.patches.shape[1:]))
    draws = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (most,))))(keys)
    _, height, width = jnp.moveaxis(media.spread(media.grid), -1, 0)
    time, row, column = jnp.moveaxis(jnp.asarray(media.coords), -1, 0)
    down, across, channel = np.indices((k, k, shape[2])).reshape(3, -1)
    line = (time * height * k + row * k)[..., None] + down
    place = (line * (width * k)[..., None] + (column * k)[..., None] + across) * shape[2] + channel
    index = jnp.maximum(media.item, 0)[..., None] * most + place
    flat = jnp.take_along_axis(draws.reshape(rows, -1), index.reshape(rows, -1), axis=1)
    return flat.reshape(index.shape)
