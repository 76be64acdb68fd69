"""How likely texts are after any mix of texts and images."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transfusion_jax.config import Config, require
from transfusion_jax.data.batch import Batch
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Document, Text
from transfusion_jax.generation.phases import embed_clean
from transfusion_jax.generation.prompt import rows_of
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.media import text_positions
from transfusion_jax.model.transfusion import Params, Transfusion
from transfusion_jax.parallel.sharding import split, to_host
from transfusion_jax.tasks.families import ModelTask

ROWS = 32  # scored at a time, at the most
SHORTEST = 32  # elements of a row of tokens, the next size being twice that


@dataclass(frozen=True)
class Score:
    """Of one continuation."""

    log_likelihood: float  # in nats, summed over its tokens
    tokens: int
    greedy: bool  # whether each of its tokens is the likeliest


def score_continuations(
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
    nothing = (Text(np.zeros(0, np.int32)),)  # before it stands BOS, whatever a text begins with
    whole = [Document((*(d.segments or nothing), Text(c))) for d, c in zip(documents, continuations, strict=True)]
    longest = max((document.length(task.config.model) for document in whole), default=1)
    found: list[Score] = []
    for begin in range(0, len(whole), size := scored_at_a_time(task.config, longest)):
        rows, ends = rows_of(whole[begin : begin + size], task.config, codec)
        counts = np.array([len(tokens) for tokens in continuations[begin : begin + size]])
        for chance, count, likeliest in zip(
            *to_host(_score(task, codec.special.eos, params, rows, ends - counts, ends)), strict=True
        ):
            found.append(Score(float(chance), int(count), bool(likeliest)))
    return found


def score_tokens(
    task: ModelTask,
    params: Params,
    codec: Codec,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
) -> Iterator[tuple[int, Score]]:
    """The log-likelihood of tokens after tokens where only text can follow, by number, the longest first.

    Other than in `score_continuations`, entries that no text holds (marks and codes of images) have no share in the
    likelihood: it is that of writing text alone, and of a language model with these weights. BOS is not added.

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts.
        contexts: tokens before, one at least.
        continuations: tokens behind each.

    Raises:
        ConfigError: all but the last token do not fit the context.
    """
    whole = [np.array([*a, *b], np.int32) for a, b in zip(contexts, continuations, strict=True)]
    order = sorted(range(len(whole)), key=lambda number: -len(whole[number]))
    limit, begin = task.config.data.context_length, 0
    while begin < len(order):
        longest = len(whole[order[begin]]) - 1
        part = order[begin : begin + scored_at_a_time(task.config, longest)]
        begin += len(part)
        require(longest <= limit, f"{longest} tokens do not fit the model's context of {limit}")
        shape = 1 << (len(part) - 1).bit_length(), min(max(SHORTEST, 1 << (longest - 1).bit_length()), limit)
        tokens, follows, asked = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
        for row, number in enumerate(part):
            end = len(whole[number]) - 1
            tokens[row, :end], follows[row, :end] = whole[number][:-1], whole[number][1:]
            asked[row, len(contexts[number]) - 1 : end] = True
        chances, counts, greedy = to_host(_score_tokens(task, codec.special.eos, params, tokens, follows, asked))
        for row, number in enumerate(part):
            yield number, Score(float(chances[row]), int(counts[row]), bool(greedy[row]))


def scored_at_a_time(config: Config, length: int) -> int:
    """Rows of a length to score at a time, a power of two: no more elements than training computes at a time."""
    fitting = max(1, config.part_rows * config.data.context_length // max(length, SHORTEST))
    return min(ROWS, 1 << (fitting.bit_length() - 1))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    task: ModelTask, eos: int, params: Params, rows: Batch, begins: Int[Array, " B"], ends: Int[Array, " B"]
) -> tuple[Float[Array, " B"], Int[Array, " B"], Bool[Array, " B"]]:
    """Log-likelihood, number and greediness of the tokens from begin to end."""
    model = task.model.bind(params)
    rows = jax.tree.map(lambda x: split(x, "batch"), rows)
    x, places = embed_clean(model, rows)
    hidden, _ = model.trunk(x, rows.spans, rows.positions, patch_places=places)
    index = jnp.arange(rows.tokens.shape[1] - 1)
    asked = (begins[:, None] <= index + 1) & (index + 1 < ends[:, None])
    follows = jnp.asarray(rows.tokens)[:, 1:]
    return _likelihoods(model, eos, hidden[:, :-1], follows, asked, among_texts=False)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score_tokens(
    task: ModelTask,
    eos: int,
    params: Params,
    tokens: Int[Array, "B T"],
    follows: Int[Array, "B T"],
    asked: Bool[Array, "B T"],
) -> tuple[Float[Array, " B"], Int[Array, " B"], Bool[Array, " B"]]:
    """The same of the tokens that follow these where they are asked for."""
    model = task.model.bind(params)
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    places = text_positions(tokens.shape[1], bool(model.config.rope_sections))
    positions = jnp.broadcast_to(places, (len(tokens), *places.shape))
    x, _ = model.embed(tokens)
    causal = Spans(jnp.zeros_like(index), index + 1)
    hidden, _ = model.trunk(x, causal, positions, patch_places=index[:, :0])
    return _likelihoods(model, eos, hidden, follows, asked, among_texts=True)


def _likelihoods(
    model: Transfusion,
    eos: int,
    hidden: Float[Array, "B T W"],
    follows: Int[Array, "B T"],
    asked: Bool[Array, "B T"],
    among_texts: bool,
) -> tuple[Float[Array, " B"], Int[Array, " B"], Bool[Array, " B"]]:
    config = model.config
    entry = jnp.arange(config.padded_vocabulary)
    text = (entry < config.vocabulary) | (entry == eos)

    def one(args: tuple) -> tuple:  # row by row: logits of all would be large
        hidden, follows, asked = args
        logits = model.text_logits(hidden)
        of_texts = jnp.where(text, logits, -jnp.inf)
        chances = jax.nn.log_softmax(of_texts if among_texts else logits)
        chance = jnp.take_along_axis(chances, follows[:, None], 1)[:, 0]
        likeliest = jnp.argmax(of_texts, -1) == follows
        return jnp.sum(jnp.where(asked, chance, 0)), jnp.sum(asked), jnp.all(likeliest | ~asked)

    return jax.lax.map(one, (hidden, follows, asked))
