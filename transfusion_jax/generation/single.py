"""Texts alone, and images alone: documents continued, images captioned, an image drawn for each prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from transfusion_jax.config import SamplingConfig, require
from transfusion_jax.data.datasets import Codec, by_shape
from transfusion_jax.data.documents import Document, Image
from transfusion_jax.generation.interleaved import Request, generate
from transfusion_jax.generation.prompt import prompt_of
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask


def write_texts(
    task: ModelTask,
    params: Params,
    codec: Codec,
    documents: list[Document],
    writing: Writing,
    seed: int = 0,
) -> list[str]:
    """A continuation of each document.

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts and images.
        documents: what stands before; images in them are clean (t = 0).
        writing: how.
        seed: text i depends on (seed, i, its document) alone.

    Raises:
        ConfigError: a document leaves no room in the context.
    """
    requests = [Request(document, "text", seed, number) for number, document in enumerate(documents)]
    return [sample.text for sample in generate(task, params, codec, requests, writing=writing)]


def caption_images(
    task: ModelTask,
    params: Params,
    codec: Codec,
    images: Float[np.ndarray, "S H W C"] | Sequence[Float[np.ndarray, "_ _ C"]],
    writing: Writing | None = None,
    seed: int = 0,
) -> list[str]:
    """The model's words for images in [−1, 1]; by default the likeliest ones, up to 40."""
    require(task.config.model.images != "none", "this is a model of text alone: it sees no images")
    documents = [Document((Image(latent),)) for latent in by_shape(codec.latents, list(images))]
    return write_texts(task, params, codec, documents, writing or Writing(max_tokens=40), seed)


def draw_images(
    task: ModelTask,
    params: Params,
    codec: Codec,
    prompts: list[str],
    seed: int,
    sampling: SamplingConfig | None = None,
    grids: Sequence[tuple[int, int] | None] | None = None,
) -> list[Float[np.ndarray, "_ _ C"]]:
    """One image for each prompt.

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts and images.
        prompts: texts that the images follow; a prompt may stand more than once.
        seed: image i depends on (seed, i, its prompt) alone, whatever is drawn beside it.
        sampling: how; by default the config's.
        grids: rows and columns of patches of each; None, or no entry's: see `Request.grid`.

    Returns:
        Images `[H, W, channels]` in [−1, 1], in the prompts' order.

    Raises:
        ConfigError: a prompt does not fit the context, or the model draws no images.
    """
    asked = zip(prompts, grids or [None] * len(prompts), strict=True)
    requests = [
        Request(prompt_of(text, codec), "image", seed, number, grid) for number, (text, grid) in enumerate(asked)
    ]
    return [sample.images[0] for sample in generate(task, params, codec, requests, sampling)]
