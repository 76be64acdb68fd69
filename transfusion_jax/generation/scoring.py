"""How likely texts are after any mix of texts and images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax.data.batch import Batch
from transfusion_jax.data.documents import Document, Text
from transfusion_jax.data.load import Codec
from transfusion_jax.generation.prompt import rows_of
from transfusion_jax.model.transfusion import Params, find_patches
from transfusion_jax.parallel.sharding import split, to_host
from transfusion_jax.training.tasks import ModelTask

ROWS = 32  # scored at a time


@dataclass(frozen=True)
class Score:
    """Of one continuation."""

    log_likelihood: float  # in nats, summed over its tokens
    tokens: int
    greedy: bool  # whether each of its tokens is the likeliest


def score(
    task: ModelTask,
    params: Params,
    codec: Codec,
    documents: Sequence[Document],
    continuations: Sequence[np.ndarray],
) -> list[Score]:
    """The log-likelihood of tokens that follow a document, images in it being clean (t = 0).

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts and images.
        documents: what stands before.
        continuations: tokens `[n]` behind each.

    Raises:
        ConfigError: a document and its continuation do not fit the context.
    """
    whole = [Document((*d.segments, Text(c))) for d, c in zip(documents, continuations, strict=True)]
    found: list[Score] = []
    for begin in range(0, len(whole), ROWS):
        rows, ends = rows_of(whole[begin : begin + ROWS], task.config, codec)
        counts = np.array([len(tokens) for tokens in continuations[begin : begin + ROWS]])
        for chance, count, likeliest in zip(
            *to_host(_score(task, codec.special.eos, params, rows, ends - counts, ends)), strict=True
        ):
            found.append(Score(float(chance), int(count), bool(likeliest)))
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    task: ModelTask, eos: int, params: Params, rows: Batch, begins: jax.Array, ends: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-likelihood, number and greediness `[B]` of the tokens from begin to end."""
    model, config = task.model, task.config.model
    rows = jax.tree.map(lambda x: split(x, "batch"), rows)
    clean = jnp.zeros(rows.latents.shape[:2], jnp.int32)
    x, _ = model.embed(params, rows.tokens, rows.image_slot, rows.patch_index, rows.latents, clean)
    places = find_patches(rows.image_slot, rows.latents.shape[1], config.patches)
    hidden, _ = model.trunk(params, x, rows.spans, rows.positions, patch_places=places)
    entry = jnp.arange(config.padded_vocabulary)
    text = (entry < config.vocabulary) | (entry == eos)
    index = jnp.arange(rows.tokens.shape[1] - 1)

    def one(args: tuple) -> tuple:  # row by row: logits of all would be large
        hidden, tokens, begin, end = args
        logits = model.text_logits(params, hidden[:-1])
        follows = tokens[1:, None]
        asked = (begin <= index + 1) & (index + 1 < end)
        chance = jnp.take_along_axis(jax.nn.log_softmax(logits), follows, 1)[:, 0]
        likeliest = jnp.argmax(jnp.where(text, logits, -jnp.inf), -1) == follows[:, 0]
        return jnp.sum(jnp.where(asked, chance, 0)), jnp.sum(asked), jnp.all(likeliest | ~asked)

    return jax.lax.map(one, (hidden, jnp.asarray(rows.tokens), begins, ends))
