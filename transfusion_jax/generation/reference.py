"""Drawing and writing without a cache, the whole row computed at every step: simple, slow, the definition.

`interleaved` gives the same, and is held to it by tests.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import SamplingConfig
from transfusion_jax.data.batch import Batch
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Document, Image
from transfusion_jax.diffusion import sampler
from transfusion_jax.diffusion.sampler import Bounds, SamplerSteps, sampler_steps
from transfusion_jax.generation.phases import embed_clean
from transfusion_jax.generation.prompt import rows_of
from transfusion_jax.model.layers import put_elements, take_elements
from transfusion_jax.model.media import Media, patchify, unpatchify
from transfusion_jax.model.transfusion import Params
from transfusion_jax.parallel.sharding import to_host
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.tasks.transfusion import TransfusionTask


def draw_latents(
    task: TransfusionTask,
    params: Params,
    codec: Codec,
    documents: list[Document],
    keys: Key[Array, " S"],
    sampling: SamplingConfig,
    grid: tuple[int, int] | None = None,
) -> Float[np.ndarray, "S h w c"]:
    """Latents of one image behind each document, with guidance against an image alone and nothing finer.

    Each has a key. Images in the documents are clean. All drawn have this grid of patches, or the config's.
    """
    config, guided = task.config, sampling.guidance != 1
    grid, k = grid or config.model.patch_grid, config.model.patch_size
    blank = Image(np.zeros((grid[0] * k, grid[1] * k, config.model.latent_shape[2]), np.float32))
    before = documents + [Document(())] * len(documents) if guided else documents
    rows, _ = rows_of([Document((*document.segments, blank)) for document in before], config, codec)
    slots = jnp.array([document.images for document in before])
    steps = sampler_steps(task.schedule, config.diffusion, sampling, grid[0] * grid[1])
    return to_host(
        _denoise(task, grid, guided, params, rows, slots, keys, steps, sampling.guidance, codec.bounds())
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _denoise(
    task: TransfusionTask,
    grid: tuple[int, int],
    guided: bool,
    params: Params,
    rows: Batch,
    slots: Int[Array, " B"],
    keys: Key[Array, " S"],
    steps: SamplerSteps,
    guidance: float,
    bounds: Bounds | None,
) -> Float[Array, "S h w c"]:
    """Latents; with guidance, the second half of the rows is its other branch."""
    model, media = task.config.model, rows.media["images"]
    row, patches = jnp.arange(len(slots)), grid[0] * grid[1]
    begin = jnp.argmax(media.item == slots[:, None], axis=1)  # of the image's patches
    places = begin[:, None] + jnp.arange(patches)

    def predict(x: Float[Array, "S h w c"], t: Int[Array, ""]) -> Float[Array, "S h w c"]:
        drawn = patchify(jnp.concatenate([x, x]) if guided else x, model.patch_size)
        noised = replace(media, patches=put_elements(jnp.asarray(media.patches), drawn, places))
        times = jnp.zeros(media.grid.shape[:2], jnp.int32).at[row, slots].set(t)
        predicted = take_elements(predict_images(task, params, rows, noised, times), places)
        predicted = unpatchify(predicted, model.patch_size, grid)
        if not guided:
            return predicted
        conditional, other = jnp.split(predicted, 2)
        return other + guidance * (conditional - other)

    k, channels = model.patch_size, model.latent_shape[2]
    return sampler.sample(predict, keys, (grid[0] * k, grid[1] * k, channels), steps, bounds)


def predict_images(
    task: TransfusionTask, params: Params, rows: Batch, media: Media, timesteps: Int[Array, "B N"]
) -> Float[Array, "B M values"]:
    """The model's prediction for noised patches in their rows."""
    model = task.model.bind(params)
    x, skips = model.embed(rows.tokens, rows.patch, media, timesteps)
    hidden, _ = model.trunk(x, rows.spans, rows.positions, patch_places=media.element)
    return model.denoise(hidden, media, timesteps, skips)


def write_greedily(
    task: ModelTask, params: Params, codec: Codec, documents: list[Document], max_tokens: int
) -> list[str]:
    """The likeliest continuation of each document, token by token, until EOS or `max_tokens`."""
    rows, lengths = rows_of(documents, task.config, codec, max_tokens)
    written = _write(task, max_tokens, codec.ends, params, rows, jnp.asarray(lengths))
    texts = []
    for tokens in to_host(written):
        ends = np.flatnonzero(np.isin(tokens, codec.ends))
        texts.append(codec.tokenizer.decode(tokens[: ends[0]] if len(ends) else tokens))
    return texts


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _write(
    task: ModelTask, max_tokens: int, ends: tuple[int, ...], params: Params, rows: Batch, lengths: Int[Array, " B"]
) -> Int[Array, "B {max_tokens}"]:
    """Tokens; what follows an end is EOS."""
    model, sample = task.model.bind(params), jnp.arange(len(lengths))
    entry = jnp.arange(task.config.model.padded_vocabulary)
    allowed = (entry < task.config.model.vocabulary) | (entry == ends[0])

    def one(carry: tuple, index: Int[Array, ""]) -> tuple[tuple, Int[Array, " B"]]:
        tokens, ended = carry
        x, places = embed_clean(model, rows, tokens)
        hidden, _ = model.trunk(x, rows.spans, rows.positions, patch_places=places)
        logits = model.text_logits(hidden[sample, lengths + index - 1])
        chosen = jnp.argmax(jnp.where(allowed, logits, -jnp.inf), -1).astype(tokens.dtype)
        chosen = jnp.where(ended, ends[0], chosen)
        return (tokens.at[sample, lengths + index].set(chosen), ended | jnp.isin(chosen, jnp.array(ends))), chosen

    begin = (jnp.asarray(rows.tokens), jnp.zeros(len(lengths), bool))
    return jax.lax.scan(one, begin, jnp.arange(max_tokens))[1].T
