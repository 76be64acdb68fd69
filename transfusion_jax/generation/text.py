"""Writing text after any mix of texts and images, the whole row computed for every token.

This is the reference: simple and uncached.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax.config import require
from transfusion_jax.data.batch import Batch
from transfusion_jax.data.documents import Document, Image
from transfusion_jax.data.load import Codec
from transfusion_jax.generation.prompt import text_rows
from transfusion_jax.model.transfusion import Params, find_patches
from transfusion_jax.parallel.sharding import to_host
from transfusion_jax.training.tasks import ModelTask


def write(task: ModelTask, params: Params, codec: Codec, documents: list[Document], max_tokens: int) -> list[str]:
    """The likeliest continuation of each document, token by token, until EOS or `max_tokens`.

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts and images.
        documents: what stands before; images in them are clean (t = 0).
        max_tokens: length of the longest text.

    Raises:
        ConfigError: a document and the text do not fit the context.
    """
    rows, lengths = text_rows(documents, task.config, codec, max_tokens)
    written = _write(task, max_tokens, codec.special.eos, params, rows, jnp.asarray(lengths))
    texts = []
    for tokens in to_host(written):
        ends = np.flatnonzero(tokens == codec.special.eos)
        texts.append(codec.tokenizer.decode(tokens[: ends[0]] if len(ends) else tokens))
    return texts


def caption(task: ModelTask, params: Params, codec: Codec, images: np.ndarray, max_tokens: int = 40) -> list[str]:
    """The model's words for images `[S, H, W, channels]` in [−1, 1]."""
    require(task.config.model.images != "none", "this is a model of text alone: it sees no images")
    documents = [Document((Image(latent),)) for latent in codec.latents(images)]
    return write(task, params, codec, documents, max_tokens)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _write(
    task: ModelTask, max_tokens: int, eos: int, params: Params, rows: Batch, lengths: jax.Array
) -> jax.Array:
    """Tokens `[S, max_tokens]`; what follows EOS is EOS."""
    model, sample = task.model, jnp.arange(len(lengths))
    clean = jnp.zeros(rows.latents.shape[:2], jnp.int32)
    entry = jnp.arange(task.config.model.padded_vocabulary)
    allowed = (entry < task.config.model.vocabulary) | (entry == eos)

    def one(carry: tuple, index: jax.Array) -> tuple[tuple, jax.Array]:
        tokens, ended = carry
        x, _ = model.embed(params, tokens, rows.image_slot, rows.patch_index, rows.latents, clean)
        places = find_patches(rows.image_slot, rows.latents.shape[1], task.config.model.patches)
        hidden, _ = model.trunk(params, x, rows.spans, rows.positions, patch_places=places)
        logits = model.text_logits(params, hidden[sample, lengths + index - 1])
        chosen = jnp.argmax(jnp.where(allowed, logits, -jnp.inf), -1).astype(tokens.dtype)
        chosen = jnp.where(ended, eos, chosen)
        return (tokens.at[sample, lengths + index].set(chosen), ended | (chosen == eos)), chosen

    begin = (jnp.asarray(rows.tokens), jnp.zeros(len(lengths), bool))
    return jax.lax.scan(one, begin, jnp.arange(max_tokens))[1].T
