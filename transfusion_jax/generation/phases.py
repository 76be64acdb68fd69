"""Decoding with a cache, one phase at a time, each a jitted function of static shapes.

A text phase adds tokens to every row that writes; an image phase draws one image for each row that asked for one,
against keys and values of all that stands before it, and then adds it to its row, clean. Rows have lengths of their
own. What a row gets depends on it alone: its keys, what it holds, and how many tokens and images it has had.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from transfusion_jax.data.batch import TEXT, Batch
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.diffusion.sampler import Bounds, SamplerSteps, normal_noise, take_step
from transfusion_jax.generation.guidance import combine_branches
from transfusion_jax.generation.token_sampling import Chances, choose_tokens
from transfusion_jax.model.kv_cache import Cache, Past
from transfusion_jax.model.layers import find_patches
from transfusion_jax.model.spans import Spans
from transfusion_jax.model.transfusion import Params, Transfusion
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.tasks.next_token import TokenTask
from transfusion_jax.tasks.transfusion import TransfusionTask

NOTHING = -1  # a token that was not written


class DecodingState(NamedTuple):
    """Rows under way."""

    cache: Cache
    hidden: Float[Array, "B W"]  # of each row's last element
    written: Int[Array, " B"]  # tokens that it has had


class Canvas(NamedTuple):
    """Images under way."""

    x: Float[Array, "S h w c"]
    clean: Float[Array, "S h w c"]  # where x points to


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(task: ModelTask, size: int, params: Params, rows: Batch, lengths: Int[Array, " B"]) -> DecodingState:
    """Rows that hold their prompts.

    Args:
        task: the model's.
        size: elements that a row has room for, those of the prompt among them.
        params: weights.
        rows: prompts, of any lengths up to T.
    """
    model, config = task.model.bind(params), task.config.model
    clean = jnp.zeros(rows.latents.shape[:2], jnp.int32)
    x, _ = model.embed(rows.tokens, rows.image_slot, rows.patch_index, rows.latents, clean)
    places = find_patches(rows.image_slot, rows.latents.shape[1], config.patches)
    hidden, present = model.trunk(x, rows.spans, rows.positions, Cache.empty(config, len(x), 0), places)
    cache = Cache.empty(config, len(x), max(size, x.shape[1])).append(present, lengths, hidden)
    last = hidden[jnp.arange(len(x)), lengths - 1]
    return DecodingState(cache, last, jnp.zeros(len(x), jnp.int32))


class Limits(NamedTuple):
    """What each row may still do."""

    tokens: Int[Array, " B"]  # how many tokens it may have had
    elements: Int[Array, " B"]  # how many elements it may hold
    images: Int[Array, " B"]  # how many images it may begin


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), static_argnames="ends", donate_argnums=5)
def write_tokens(
    task: ModelTask,
    special: SpecialTokens,
    count: int,
    filters: bool,
    params: Params,
    state: DecodingState,
    active: Bool[Array, " B"],
    limits: Limits,
    keys: Key[Array, " B"],
    chances: Chances,
    ends: tuple[int, ...] = (),
) -> tuple[DecodingState, Int[Array, "B {count}"]]:
    """Up to `count` tokens for each active row, and which they are.

    A row stops by itself after EOS, which it does not keep, after BOI, which it does, and where it may not go on.

    Args:
        task: the model's.
        special: marks among the tokens.
        count: how many tokens at the most.
        filters: see `choose`.
        params: weights.
        state: rows under way.
        active: which of them write.
        limits: how far.
        keys: the n-th token that a row writes is drawn with `fold_in(key, n)`.
        chances: how tokens are chosen.
        ends: tokens that a row stops after as after EOS.
    """
    model, config = task.model.bind(params), task.config.model
    entry = jnp.arange(config.padded_vocabulary)
    text = (entry < config.vocabulary) | (entry == special.eos)
    room = config.patches + 2 if config.images != "none" else 0

    def goes_on(carry: tuple) -> Bool[Array, ""]:
        index, _, active, _ = carry
        return (index < count) & jnp.any(active)

    def one(carry: tuple) -> tuple:
        index, state, active, tokens = carry
        length = state.cache.length
        active &= (state.written < limits.tokens) & (length < limits.elements)
        draws = (limits.images > 0) & (length + room <= limits.elements)
        allowed = text | (draws[:, None] & (entry == special.boi))
        logits = jnp.where(allowed, model.text_logits(state.hidden), -jnp.inf)
        token = choose_tokens(logits, jax.vmap(jax.random.fold_in)(keys, state.written), chances, filters)
        token = jnp.where(active, token, NOTHING)
        kept = active & ~jnp.isin(token, jnp.array((special.eos, *ends)))
        state = _add_tokens(model, state, jnp.maximum(token, 0), kept)
        state = state._replace(written=state.written + active)
        tokens = tokens.at[:, index].set(token)
        return index + 1, state, kept & (token != special.boi), tokens

    tokens = jnp.full((len(active), count), NOTHING)
    _, state, _, tokens = jax.lax.while_loop(goes_on, one, (jnp.int32(0), state, active, tokens))
    return state, tokens


@functools.partial(jax.jit, static_argnums=0)
def gather_rows(size: int, states: Sequence[DecodingState], rows: tuple[Int[Array, " S"], ...]) -> DecodingState:
    """Some rows of each state with the first `size` of their elements, one state behind the other."""
    parts = [
        DecodingState(s.cache.rows(index, size), s.hidden[index], s.written[index])
        for s, index in zip(states, rows, strict=True)
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


@functools.partial(jax.jit, static_argnums=0)
def blank(shape: tuple[int, ...], keys: Key[Array, " S"]) -> Canvas:
    """Pure noise, one key for each image."""
    x = normal_noise(keys, jnp.int32(0), shape)
    return Canvas(x, jnp.zeros_like(x))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def denoise(
    task: TransfusionTask,
    params: Params,
    cache: Cache,
    canvas: Canvas,
    keys: Key[Array, " S"],
    steps: SamplerSteps,
    weights: Float[Array, "E branches"],
    rescale: Shaped[Any, ""] | float,
    bounds: Bounds | None,
    begin: Int[Any, ""] | int,
    end: Int[Any, ""] | int,
) -> Canvas:
    """Evaluations `begin` to `end` of a sampler's.

    Args:
        task: the model's.
        params: weights.
        cache: what stands before the images, of the first branch of all, then of the second, and so on.
        canvas: the images.
        keys: one of each image.
        steps: the sampler's, on the device.
        weights: see `guidance`.
        rescale: see `guidance.combine`.
        bounds: see `take_step`.
        begin: the first evaluation.
        end: the one after the last.
    """
    model, shape = task.model.bind(params), canvas.x.shape[1:]

    def evaluate(index: Int[Array, ""], canvas: Canvas) -> Canvas:
        t, step = steps.asked[index], jax.tree.map(lambda w: w[index], steps.weights)
        tiled = jnp.concatenate([canvas.x] * weights.shape[1])
        predicted = combine_branches(_predict(model, cache, tiled, t), weights[index], rescale)
        return Canvas(*take_step(*canvas, predicted, normal_noise(keys, index + 1, shape), step, bounds))

    return jax.lax.fori_loop(begin, end, evaluate, canvas)


def _predict(
    model: Transfusion, cache: Cache, latents: Float[Array, "B h w c"], t: Int[Array, ""]
) -> Float[Array, "B h w c"]:
    """The model's prediction for noised images behind what the cache holds."""
    patches = model.config.patches
    times = jnp.full((len(latents), 1), t)
    slot, patch = _image(len(latents), patches, 0)
    x, skips = model.embed(jnp.zeros_like(slot), slot, patch, latents[:, None], times)
    hidden, _ = _behind(model, x, cache, patches)
    return model.denoise(hidden[:, None], times, skips)[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def add_images(
    task: ModelTask,
    special: SpecialTokens,
    params: Params,
    state: DecodingState,
    images: Shaped[Array, "B ..."],
    drawn: Bool[Array, " B"],
) -> DecodingState:
    """Rows with a clean image, or its codes, and EOI added where one was drawn."""
    model, config, rows = task.model.bind(params), task.config.model, len(images)
    slot, patch = _image(rows, config.patches, 1)
    if config.images == "codes":
        tokens = jnp.pad(config.first_code + images, ((0, 0), (0, 1)), constant_values=special.eoi)
        latents = jnp.zeros((rows, 0, 0, 0, 0))
    else:
        tokens, latents = jnp.full_like(slot, special.eoi), images[:, None]
    x, _ = model.embed(tokens, slot, patch, latents, jnp.zeros(latents.shape[:2], jnp.int32))
    hidden, present = _behind(model, x, state.cache, config.patches)
    cache = state.cache.append(present, drawn * x.shape[1], hidden)
    return DecodingState(cache, jnp.where(drawn[:, None], hidden[:, -1], state.hidden), state.written)


@functools.partial(jax.jit, static_argnums=0)
def draw_codes(
    task: TokenTask,
    params: Params,
    state: DecodingState,
    keys: Key[Array, " S"],
    weights: Float[Array, " branches"],
    temperature: Shaped[Any, ""] | float,
) -> Int[Array, "S P"]:
    """Codes, one by one, guidance on the logits.

    Args:
        task: the model's.
        params: weights.
        state: rows that end with the images' BOIs, those of the first branch first, with room for the codes.
        keys: the n-th code is drawn with `fold_in(key, n)`.
        temperature: divides the logits; 0 takes the likeliest code.
    """
    model, config, branches = task.model.bind(params), task.config.model, len(weights)
    chances = Chances(temperature, 0, 1.0, 0.0)

    def one(
        carry: tuple[DecodingState, jax.Array], number: Int[Array, ""]
    ) -> tuple[tuple[DecodingState, jax.Array], None]:
        state, codes = carry
        logits = model.text_logits(state.hidden)[:, config.first_code : config.entries]
        each = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        code = choose_tokens(combine_branches(logits, weights, 0.0), each, chances, filters=False)
        tokens = config.first_code + jnp.tile(code, branches)
        state = _add_tokens(model, state, tokens, jnp.full(len(tokens), True))
        return (state, codes.at[:, number].set(code)), None

    codes = jnp.zeros((len(keys), config.patches), jnp.int32)
    return jax.lax.scan(one, (state, codes), jnp.arange(config.patches))[0][1]


def _add_tokens(
    model: Transfusion, state: DecodingState, tokens: Int[Array, " B"], kept: Bool[Array, " B"]
) -> DecodingState:
    """One token more, in the rows that keep theirs."""
    rows = len(tokens)
    text = jnp.full((rows, 1), TEXT)
    x, _ = model.embed(tokens[:, None], text, text, jnp.zeros((rows, 0, 0, 0, 0)), jnp.zeros((rows, 0), jnp.int32))
    hidden, present = _behind(model, x, state.cache, 0)
    cache = state.cache.append(present, kept.astype(jnp.int32), hidden)
    return state._replace(cache=cache, hidden=jnp.where(kept[:, None], hidden[:, 0], state.hidden))


def _image(rows: int, patches: int, behind: int) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Image slots and patch indices of an image and so much text behind it."""
    index = jnp.broadcast_to(jnp.arange(patches + behind), (rows, patches + behind))
    is_patch = index < patches
    return jnp.where(is_patch, 0, TEXT), jnp.where(is_patch, index, 0)


def _behind(
    model: Transfusion, x: Float[Array, "B T W"], cache: Cache, patches: int
) -> tuple[Float[Array, "B T W"], tuple[Past, ...]]:
    """Hidden states of elements that follow what the rows hold, and their keys and values.

    The first `patches` of them are an image's.
    """
    config, length = model.config, cache.length[:, None]
    index = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    together = (index < patches) & (config.image_attention == "bidirectional")
    spans = Spans(jnp.zeros_like(index), length + jnp.where(together, patches, index + 1))
    return model.trunk(x, spans, length + index, cache, index[:, :patches])
