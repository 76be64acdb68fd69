"""Drawing images from text: denoising with classifier-free guidance, the whole row computed at every step.

This is the reference: simple, uncached, one image per prompt.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax.config import require
from transfusion_jax.data.batch import Batch
from transfusion_jax.data.load import Codec
from transfusion_jax.diffusion import sampler
from transfusion_jax.diffusion.sampler import Bounds
from transfusion_jax.generation.codes import draw_codes
from transfusion_jax.generation.prompt import image_rows
from transfusion_jax.model.transfusion import Params, find_patches, gather_patches
from transfusion_jax.parallel.sharding import to_host
from transfusion_jax.training.tasks import ModelTask
from transfusion_jax.training.tokens import TokenTask
from transfusion_jax.training.transfusion import TransfusionTask

BATCH = 100  # images drawn at a time


def draw(
    task: ModelTask,
    params: Params,
    codec: Codec,
    prompts: list[str],
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
) -> np.ndarray:
    """One image for each prompt.

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts and images.
        prompts: texts that the images follow; a prompt may stand more than once.
        seed: image i depends on (seed, i, its prompt) alone, whatever is drawn beside it.
        steps: denoising steps, of latents; by default the config's.
        guidance: scale of classifier-free guidance (1: none); by default the config's.
        temperature: of codes, which are drawn one by one; by default the config's.

    Returns:
        `[len(prompts), H, W, channels]` in [−1, 1].

    Raises:
        ConfigError: a prompt does not fit the context, the model draws no images, or not so.
        ValueError: `steps` is out of range.
    """
    config = task.config
    guidance = config.sampling.guidance if guidance is None else guidance
    if isinstance(task, TokenTask):
        require(config.model.images == "codes", "this is a model of text alone: it draws no images")
        require(steps is None, "this model draws codes one by one: it takes no sampling steps")
        temperature = config.sampling.temperature if temperature is None else temperature
        return codec.images(draw_codes(task, params, codec, prompts, seed, guidance, temperature))
    require(temperature is None, "this model denoises latents: it takes no temperature")
    steps = config.sampling.steps if steps is None else steps
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(len(prompts)))
    bounds = codec.bounds()
    drawn = []
    for begin in range(0, len(prompts), BATCH):
        part = prompts[begin : begin + BATCH]
        rows = image_rows(part + [""] * len(part) if guidance != 1 else part, config, codec)
        latents = _denoise(task, steps, guidance != 1, params, rows, keys[begin : begin + BATCH], guidance, bounds)
        drawn.append(codec.images(to_host(latents)))
    return np.concatenate(drawn)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _denoise(
    task: TransfusionTask,
    steps: int,
    guided: bool,
    params: Params,
    rows: Batch,
    keys: jax.Array,
    guidance: float,
    bounds: Bounds | None,
) -> jax.Array:
    """Latents `[S, h, w, c]`; with guidance, the second half of the rows is its other branch."""

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        both = jnp.concatenate([x, x]) if guided else x
        predicted = predict_images(task, params, rows, both[:, None], jnp.full((len(both), 1), t))[:, 0]
        if not guided:
            return predicted
        conditional, other = jnp.split(predicted, 2)
        return other + guidance * (conditional - other)

    shape, objective = task.config.model.latent_shape, task.config.diffusion.objective
    return sampler.sample(predict, keys, shape, task.schedule, steps, bounds, objective)


def predict_images(
    task: TransfusionTask, params: Params, rows: Batch, latents: jax.Array, timesteps: jax.Array
) -> jax.Array:
    """The model's prediction `[B, N, h, w, c]` for noised latents in their rows."""
    model = task.model
    x, skips = model.embed(params, rows.tokens, rows.image_slot, rows.patch_index, latents, timesteps)
    places = find_patches(rows.image_slot, latents.shape[1], task.config.model.patches)
    hidden, _ = model.trunk(params, x, rows.spans, rows.positions, patch_places=places)
    patches = gather_patches(hidden, rows.image_slot, latents.shape[1], task.config.model.patches)
    return model.denoise(params, patches, timesteps, skips)
