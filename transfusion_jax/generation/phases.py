"""Decoding with a cache, one phase at a time, each a jitted function of static shapes.

A text phase adds tokens to every row that writes; an image phase draws one image for each row that asked for one,
against keys and values of all that stands before it, and then adds it to its row, clean. Rows have lengths of their
own. What a row gets depends on it alone: its keys, what it holds, and how many tokens and images it has had.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transfusion_jax.data.batch import TEXT, Batch
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.diffusion.sampler import Bounds, Steps, normal, take_step
from transfusion_jax.generation.guidance import combine
from transfusion_jax.generation.token_sampling import Chances, choose
from transfusion_jax.model.kv_cache import Cache, Past
from transfusion_jax.model.layers import find_patches
from transfusion_jax.model.spans import Spans
from transfusion_jax.model.transfusion import Params, Transfusion
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.tasks.next_token import TokenTask
from transfusion_jax.tasks.transfusion import TransfusionTask

NOTHING = -1  # a token that was not written


class State(NamedTuple):
    """Rows under way."""

    cache: Cache
    hidden: jax.Array  # [B, width], of each row's last element
    written: jax.Array  # [B] int32, tokens that it has had


class Canvas(NamedTuple):
    """Images under way, `[S, h, w, c]`."""

    x: jax.Array
    clean: jax.Array  # where x points to


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(task: ModelTask, size: int, params: Params, rows: Batch, lengths: jax.Array) -> State:
    """Rows that hold their prompts.

    Args:
        task: the model's.
        size: elements that a row has room for, those of the prompt among them.
        params: weights.
        rows: prompts, of any lengths up to T.
        lengths: `[B]`.
    """
    model, config = task.model.bind(params), task.config.model
    clean = jnp.zeros(rows.latents.shape[:2], jnp.int32)
    x, _ = model.embed(rows.tokens, rows.image_slot, rows.patch_index, rows.latents, clean)
    places = find_patches(rows.image_slot, rows.latents.shape[1], config.patches)
    hidden, present = model.trunk(x, rows.spans, rows.positions, Cache.empty(config, len(x), 0), places)
    cache = Cache.empty(config, len(x), max(size, x.shape[1])).append(present, lengths, hidden)
    last = hidden[jnp.arange(len(x)), lengths - 1]
    return State(cache, last, jnp.zeros(len(x), jnp.int32))


class Limits(NamedTuple):
    """What each row `[B]` may still do."""

    tokens: jax.Array  # how many tokens it may have had
    elements: jax.Array  # how many elements it may hold
    images: jax.Array  # how many images it may begin


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), static_argnames="ends", donate_argnums=5)
def write(
    task: ModelTask,
    special: SpecialTokens,
    count: int,
    filters: bool,
    params: Params,
    state: State,
    active: jax.Array,
    limits: Limits,
    keys: jax.Array,
    chances: Chances,
    ends: tuple[int, ...] = (),
) -> tuple[State, jax.Array]:
    """Up to `count` tokens for each active row, and which they are, `[B, count]`.

    A row stops by itself after EOS, which it does not keep, after BOI, which it does, and where it may not go on.

    Args:
        task: the model's.
        special: marks among the tokens.
        count: how many tokens at the most.
        filters: see `choose`.
        params: weights.
        state: rows under way.
        active: `[B]` bool, which of them write.
        limits: how far.
        keys: `[B]`; the n-th token that a row writes is drawn with `fold_in(key, n)`.
        chances: how tokens are chosen.
        ends: tokens that a row stops after as after EOS.
    """
    model, config = task.model.bind(params), task.config.model
    entry = jnp.arange(config.padded_vocabulary)
    text = (entry < config.vocabulary) | (entry == special.eos)
    room = config.patches + 2 if config.images != "none" else 0

    def goes_on(carry: tuple) -> jax.Array:
        index, _, active, _ = carry
        return (index < count) & jnp.any(active)

    def one(carry: tuple) -> tuple:
        index, state, active, tokens = carry
        length = state.cache.length
        active &= (state.written < limits.tokens) & (length < limits.elements)
        draws = (limits.images > 0) & (length + room <= limits.elements)
        allowed = text | (draws[:, None] & (entry == special.boi))
        logits = jnp.where(allowed, model.text_logits(state.hidden), -jnp.inf)
        token = choose(logits, jax.vmap(jax.random.fold_in)(keys, state.written), chances, filters)
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
def gather(size: int, states: tuple[State, ...], rows: tuple[jax.Array, ...]) -> State:
    """Some rows `[S]` of each state with the first `size` of their elements, one state behind the other."""
    parts = [
        State(s.cache.rows(index, size), s.hidden[index], s.written[index])
        for s, index in zip(states, rows, strict=True)
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


@functools.partial(jax.jit, static_argnums=0)
def blank(shape: tuple[int, ...], keys: jax.Array) -> Canvas:
    """Pure noise `[S, *shape]`, one key for each image."""
    x = normal(keys, jnp.int32(0), shape)
    return Canvas(x, jnp.zeros_like(x))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def denoise(
    task: TransfusionTask,
    params: Params,
    cache: Cache,
    canvas: Canvas,
    keys: jax.Array,
    steps: Steps,
    weights: jax.Array,
    rescale: jax.Array | float,
    bounds: Bounds | None,
    begin: jax.Array | int,
    end: jax.Array | int,
) -> Canvas:
    """Evaluations `begin` to `end` of a sampler's.

    Args:
        task: the model's.
        params: weights.
        cache: what stands before the images, of the first branch of all, then of the second, and so on.
        canvas: the images.
        keys: `[S]`, one of each image.
        steps: the sampler's, on the device.
        weights: `[E, branches]`, see `guidance`.
        rescale: see `guidance.combine`.
        bounds: see `take_step`.
        begin: the first evaluation.
        end: the one after the last.
    """
    model, shape = task.model.bind(params), canvas.x.shape[1:]

    def evaluate(index: jax.Array, canvas: Canvas) -> Canvas:
        t, step = steps.asked[index], jax.tree.map(lambda w: w[index], steps.weights)
        tiled = jnp.concatenate([canvas.x] * weights.shape[1])
        predicted = combine(_predict(model, cache, tiled, t), weights[index], rescale)
        return Canvas(*take_step(*canvas, predicted, normal(keys, index + 1, shape), step, bounds))

    return jax.lax.fori_loop(begin, end, evaluate, canvas)


def _predict(model: Transfusion, cache: Cache, latents: jax.Array, t: jax.Array) -> jax.Array:
    """The model's prediction `[R, h, w, c]` for noised images behind what the cache holds."""
    patches = model.config.patches
    times = jnp.full((len(latents), 1), t)
    slot, patch = _image(len(latents), patches, 0)
    x, skips = model.embed(jnp.zeros_like(slot), slot, patch, latents[:, None], times)
    hidden, _ = _behind(model, x, cache, patches)
    return model.denoise(hidden[:, None], times, skips)[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def add_images(
    task: ModelTask, special: SpecialTokens, params: Params, state: State, images: jax.Array, drawn: jax.Array
) -> State:
    """Rows with a clean image `[B, h, w, c]`, or its codes `[B, P]`, and EOI added where one was drawn `[B]`."""
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
    return State(cache, jnp.where(drawn[:, None], hidden[:, -1], state.hidden), state.written)


@functools.partial(jax.jit, static_argnums=0)
def draw_codes(
    task: TokenTask,
    params: Params,
    state: State,
    keys: jax.Array,
    weights: jax.Array,
    temperature: jax.Array | float,
) -> jax.Array:
    """Codes `[S, P]`, one by one, guidance on the logits.

    Args:
        task: the model's.
        params: weights.
        state: rows that end with the images' BOIs, those of the first branch first, with room for the codes.
        keys: `[S]`; the n-th code is drawn with `fold_in(key, n)`.
        weights: `[branches]`.
        temperature: divides the logits; 0 takes the likeliest code.
    """
    model, config, branches = task.model.bind(params), task.config.model, len(weights)
    chances = Chances(temperature, 0, 1.0, 0.0)

    def one(carry: tuple[State, jax.Array], number: jax.Array) -> tuple[tuple[State, jax.Array], None]:
        state, codes = carry
        logits = model.text_logits(state.hidden)[:, config.first_code : config.entries]
        each = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        code = choose(combine(logits, weights, 0.0), each, chances, filters=False)
        tokens = config.first_code + jnp.tile(code, branches)
        state = _add_tokens(model, state, tokens, jnp.full(len(tokens), True))
        return (state, codes.at[:, number].set(code)), None

    codes = jnp.zeros((len(keys), config.patches), jnp.int32)
    return jax.lax.scan(one, (state, codes), jnp.arange(config.patches))[0][1]


def _add_tokens(model: Transfusion, state: State, tokens: jax.Array, kept: jax.Array) -> State:
    """One token `[B]` more, in the rows `[B]` that keep theirs."""
    rows = len(tokens)
    text = jnp.full((rows, 1), TEXT)
    x, _ = model.embed(tokens[:, None], text, text, jnp.zeros((rows, 0, 0, 0, 0)), jnp.zeros((rows, 0)))
    hidden, present = _behind(model, x, state.cache, 0)
    cache = state.cache.append(present, kept.astype(jnp.int32), hidden)
    return state._replace(cache=cache, hidden=jnp.where(kept[:, None], hidden[:, 0], state.hidden))


def _image(rows: int, patches: int, behind: int) -> tuple[jax.Array, jax.Array]:
    """Image slots and patch indices `[rows, patches + behind]` of an image and so much text behind it."""
    index = jnp.broadcast_to(jnp.arange(patches + behind), (rows, patches + behind))
    is_patch = index < patches
    return jnp.where(is_patch, 0, TEXT), jnp.where(is_patch, index, 0)


def _behind(model: Transfusion, x: jax.Array, cache: Cache, patches: int) -> tuple[jax.Array, tuple[Past, ...]]:
    """Hidden states of elements `[B, T, width]` that follow what the rows hold, and their keys and values.

    The first `patches` of them are an image's.
    """
    config, length = model.config, cache.length[:, None]
    index = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    together = (index < patches) & (config.image_attention == "bidirectional")
    spans = Spans(jnp.zeros_like(index), length + jnp.where(together, patches, index + 1))
    return model.trunk(x, spans, length + index, cache, index[:, :patches])
