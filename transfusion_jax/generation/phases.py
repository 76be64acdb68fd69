"""Decoding with a cache, one phase at a time, each a jitted function of static shapes.

A text phase adds tokens to every row that writes; an image phase draws one image for each row that asked for one,
against keys and values of all that stands before it, and then adds it to its row, clean. Rows have lengths of their
own, and images grids of their own, with room for as many patches as the largest of a phase may have. What a row
gets depends on it alone: its keys, what it holds, and how many tokens and images it has had.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from transfusion_jax.config import ModelConfig
from transfusion_jax.data.batch import TEXT, Batch
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.diffusion.objective import item_noise
from transfusion_jax.diffusion.sampler import Bounds, SamplerSteps, take_step
from transfusion_jax.generation.guidance import combine_branches
from transfusion_jax.generation.token_sampling import Chances, choose_tokens
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.kv_cache import Cache, Past
from transfusion_jax.model.layers import take_elements
from transfusion_jax.model.media import Media, following_positions, one_image, text_positions
from transfusion_jax.model.transfusion import Params, Transfusion
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.tasks.next_token import TokenTask
from transfusion_jax.tasks.transfusion import TransfusionTask

NOTHING = -1  # a token that was not written
SHAPE = 1 << 31  # tells the draws of an image's shape from those of its noise, which are numbered by evaluation


class DecodingState(NamedTuple):
    """Rows under way."""

    cache: Cache
    hidden: Float[Array, "B W"]  # of each row's last element
    written: Int[Array, " B"]  # tokens that it has had


class Canvas(NamedTuple):
    """Images under way, as `Media.unpack` gives them: whole where they have one size, otherwise in patches."""

    x: Float[Array, "S ..."]
    clean: Float[Array, "S ..."]  # where x points to


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
    x, places = embed_clean(model, rows)
    hidden, present = model.trunk(x, rows.spans, rows.positions, Cache.empty(config, len(x), 0), places)
    last = jnp.arange(len(x)), lengths - 1
    taken = jnp.asarray(rows.positions)[last].reshape(len(x), -1).max(-1) + 1
    cache = Cache.empty(config, len(x), max(size, x.shape[1])).append(present, lengths, hidden, taken)
    return DecodingState(cache, hidden[last], jnp.zeros(len(x), jnp.int32))


def embed_clean(
    model: Transfusion, rows: Batch, tokens: Int[Array, "B T"] | None = None
) -> tuple[Float[Array, "B T W"], Int[Array, "B M"]]:
    """Elements as vectors, all images being clean, and where the patches stand.

    Args:
        model: bound to its parameters.
        rows: the elements.
        tokens: in place of the rows' own.
    """
    tokens = rows.tokens if tokens is None else tokens
    for media in rows.media.values():
        x, _ = model.embed(tokens, rows.patch, media, jnp.zeros(media.grid.shape[:2], jnp.int32))
        return x, media.element
    return model.embed(tokens)[0], jnp.zeros((len(tokens), 0), jnp.int32)


class Limits(NamedTuple):
    """What each row may still do."""

    tokens: Int[Array, " B"]  # how many tokens it may have had
    elements: Int[Array, " B"]  # how many elements it may hold
    images: Int[Array, " B"]  # how many images it may begin
    image: Int[Array, " B"]  # how many elements one may take with its marks


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

    def goes_on(carry: tuple) -> Bool[Array, ""]:
        index, _, active, _ = carry
        return (index < count) & jnp.any(active)

    def one(carry: tuple) -> tuple:
        index, state, active, tokens = carry
        length = state.cache.length
        active &= (state.written < limits.tokens) & (length < limits.elements)
        draws = (limits.images > 0) & (length + limits.image <= limits.elements)
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
def gather_rows(size: int, states: Sequence[DecodingState], rows: Sequence[Int[Array, " _"]]) -> DecodingState:
    """Some rows of each state with the first `size` of their elements, one state behind the other."""
    parts = [
        DecodingState(s.cache.rows(index, size), s.hidden[index], s.written[index])
        for s, index in zip(states, rows, strict=True)
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


@functools.partial(jax.jit, static_argnums=0)
def write_shapes(
    task: ModelTask,
    params: Params,
    state: DecodingState,
    begun: Bool[Array, " B"],
    asked: Int[Array, "B 2"],
    keys: Key[Array, " B"],
) -> tuple[DecodingState, Int[Array, "B 2"]]:
    """Rows that end with BOI with the marks of the image's shape behind it, and those shapes.

    Args:
        task: that of a model with shape marks.
        params: weights.
        state: rows under way.
        begun: which of them end with BOI.
        asked: rows and columns of patches; 0 where the model chooses, by the chances that it gives them.
        keys: one of each image.
    """
    model, config = task.model.bind(params), task.config.model
    chances, side = Chances(1.0, 0, 1.0, 0.0), jnp.arange(1, config.sides + 1)
    room, found = jnp.full(len(begun), config.patches), []
    for axis in range(2):
        logits = model.text_logits(state.hidden)[:, config.first_side : config.entries]
        each = jax.vmap(lambda key, axis=axis: jax.random.fold_in(key, SHAPE + axis))(keys)
        chosen = 1 + choose_tokens(jnp.where(side <= room[:, None], logits, -jnp.inf), each, chances, filters=False)
        found.append(jnp.where(asked[:, axis] > 0, asked[:, axis], chosen))
        state = _add_tokens(model, state, config.first_side - 1 + found[-1], begun)
        room = config.patches // found[-1]
    return state, jnp.stack(found, axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def blank(task: TransfusionTask, room: int, grid: Int[Array, "S 2"], keys: Key[Array, " S"]) -> Canvas:
    """Pure noise, one key for each image.

    Args:
        task: the model's.
        room: patches that an image has at most.
        grid: rows and columns of patches of each.
        keys: one of each image.
    """
    model = task.config.model
    x = _noise(keys, 0, _images(model, grid, room), model)
    return Canvas(x, jnp.zeros_like(x))


def _images(model: ModelConfig, grid: Int[Array, "S 2"], room: int) -> Media:
    """Images of these grids, with nothing in their patches."""
    return one_image(jnp.zeros((len(grid), room, model.patch_channels)), grid, one_size=not model.max_side)


def _noise(
    keys: Key[Array, " S"], index: Int[Any, ""] | int, media: Media, model: ModelConfig
) -> Float[Array, "S ..."]:
    """Normal noise of each image, the index-th of its key: 0 to begin with, then one for each step."""
    return item_noise(jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)[:, None], media, model)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def denoise(
    task: TransfusionTask,
    room: int,
    params: Params,
    cache: Cache,
    canvas: Canvas,
    grid: Int[Array, "S 2"],
    keys: Key[Array, " S"],
    steps: SamplerSteps,
    weights: Float[Array, "E ..."],
    rescale: Shaped[Any, ""] | float,
    bounds: Bounds | None,
    begin: Int[Any, ""] | int,
    end: Int[Any, ""] | int,
) -> Canvas:
    """Evaluations `begin` to `end` of a sampler's.

    Args:
        task: the model's.
        room: patches that an image has at most.
        params: weights.
        cache: what stands before the images, of the first branch of all, then of the second, and so on.
        canvas: the images.
        grid: rows and columns of patches of each.
        keys: one of each image.
        steps: the sampler's, on the device: those of all images, `[E]`, or each one's own, `[E, S]`.
        weights: see `branch_weights`; the branches come last.
        rescale: see `combine_branches`.
        bounds: see `take_step`.
        begin: the first evaluation.
        end: the one after the last.
    """
    model, config, branches = task.model.bind(params), task.config.model, weights.shape[-1]
    media, every = _images(config, grid, room), _images(config, jnp.tile(grid, (branches, 1)), room)
    held = None if media.one_size else (media.item >= 0)[..., None]  # patches that there are

    def evaluate(index: Int[Array, ""], canvas: Canvas) -> Canvas:
        t, step = steps.asked[index], jax.tree.map(lambda w: w[index], steps.weights)
        times = jnp.tile(jnp.broadcast_to(t, len(grid)), branches)[:, None]
        patches = every.pack(jnp.concatenate([canvas.x] * branches), config)
        predicted = _predict(model, cache, replace(every, patches=patches), times)
        predicted = combine_branches(predicted, weights[index], rescale, held)
        step = jax.tree.map(lambda w: w.reshape(-1, *(1,) * (predicted.ndim - 1)) if w.ndim else w, step)
        noise = _noise(keys, index + 1, media, config)
        return Canvas(*take_step(*canvas, predicted, noise, step, bounds))

    return jax.lax.fori_loop(begin, end, evaluate, canvas)


def _predict(model: Transfusion, cache: Cache, media: Media, times: Int[Array, "B 1"]) -> Float[Array, "B ..."]:
    """The model's prediction for noised images behind what the cache holds, as `Media.unpack` gives values."""
    config, room = model.config, media.patches.shape[1]
    index = jnp.broadcast_to(jnp.arange(room), (len(times), room))
    there = jnp.where((media.item >= 0)[..., None], media.patches, 0)  # what is not there stays finite
    x, skips = model.embed(jnp.zeros_like(index), index, replace(media, patches=there), times)
    places = following_positions(media.grid[:, 0, 1:], room, bool(config.rope_sections))
    hidden, _ = _behind(model, x, cache, places, media)
    return media.unpack(model.denoise(hidden, media, times, skips), config)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def add_images(
    task: ModelTask,
    special: SpecialTokens,
    params: Params,
    state: DecodingState,
    images: Shaped[Array, "B M ..."],
    grid: Int[Array, "B 2"],
    drawn: Bool[Array, " B"],
) -> DecodingState:
    """Rows with a clean image and EOI added where one was drawn.

    Args:
        task: the model's.
        special: marks among the tokens.
        params: weights.
        state: rows under way.
        images: their patches, or codes, with room for M.
        grid: rows and columns of patches of each.
        drawn: which rows have one.
    """
    model, config = task.model.bind(params), task.config.model
    rows, room = images.shape[:2]
    size, index = jnp.prod(grid, axis=1), jnp.broadcast_to(jnp.arange(room + 1), (rows, room + 1))
    here = index < size[:, None]
    patches = images if config.images == "latents" else jnp.zeros((rows, room, 0))
    media = one_image(patches, grid, one_size=not config.max_side)
    if config.images == "codes":
        codes = jnp.pad(config.first_code + images, ((0, 0), (0, 1)))
        x, _ = model.embed(jnp.where(here, codes, special.eoi))
    else:
        tokens, patch = jnp.full_like(index, special.eoi), jnp.where(here, index, TEXT)
        x, _ = model.embed(tokens, patch, media, jnp.zeros((rows, 1), jnp.int32))
    places = following_positions(grid, room + 1, bool(config.rope_sections))
    hidden, present = _behind(model, x, state.cache, places, media)
    last, there = take_elements(hidden, size[:, None])[:, 0], take_elements(places, size[:, None])
    advance = there.reshape(rows, -1).max(axis=1) + 1
    cache = state.cache.append(present, drawn * (size + 1), hidden, drawn * advance)
    return DecodingState(cache, jnp.where(drawn[:, None], last, state.hidden), state.written)


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw_codes(
    task: TokenTask,
    room: int,
    params: Params,
    state: DecodingState,
    grid: Int[Array, "S 2"],
    keys: Key[Array, " S"],
    weights: Float[Array, " branches"],
    temperature: Shaped[Any, ""] | float,
) -> Int[Array, "S {room}"]:
    """Codes, one by one, guidance on the logits.

    Args:
        task: the model's.
        room: codes that an image has at most; what stands behind an image's own means nothing.
        params: weights.
        state: rows that end where the codes begin, those of the first branch first, with room for the codes.
        grid: rows and columns of codes of each image.
        keys: the n-th code is drawn with `fold_in(key, n)`.
        weights: of the branches.
        temperature: divides the logits; 0 takes the likeliest code.
    """
    model, config, branches = task.model.bind(params), task.config.model, len(weights)
    chances, size = Chances(temperature, 0, 1.0, 0.0), jnp.tile(jnp.prod(grid, axis=1), branches)
    places = following_positions(jnp.tile(grid, (branches, 1)), room, bool(config.rope_sections))

    def one(
        carry: tuple[DecodingState, jax.Array], scanned: tuple[Int[Array, ""], Int[Array, "B ..."]]
    ) -> tuple[tuple[DecodingState, jax.Array], None]:
        (state, codes), (number, place) = carry, scanned
        logits = model.text_logits(state.hidden)[:, config.first_code : config.first_side]
        each = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        code = choose_tokens(combine_branches(logits, weights, 0.0), each, chances, filters=False)
        tokens = config.first_code + jnp.tile(code, branches)
        state = _add_tokens(model, state, tokens, number < size, place[:, None])
        return (state, codes.at[:, number].set(code)), None

    codes = jnp.zeros((len(keys), room), jnp.int32)
    scanned = jnp.arange(room), jnp.moveaxis(places, 1, 0)
    return jax.lax.scan(one, (state, codes), scanned)[0][1]


def _add_tokens(
    model: Transfusion,
    state: DecodingState,
    tokens: Int[Array, " B"],
    kept: Bool[Array, " B"],
    place: Int[Array, "B 1 ..."] | None = None,
) -> DecodingState:
    """One token more, in the rows that keep theirs.

    Without a place it has the next position, and the one behind it is then the next; with one it stands so far from
    the next position, which stays.
    """
    x, _ = model.embed(tokens[:, None])
    places = jnp.asarray(text_positions(1, bool(model.config.rope_sections)))[None] if place is None else place
    hidden, present = _behind(model, x, state.cache, places)
    advance = kept.astype(jnp.int32)
    cache = state.cache.append(present, advance, hidden, advance if place is None else 0)
    return state._replace(cache=cache, hidden=jnp.where(kept[:, None], hidden[:, 0], state.hidden))


def _behind(
    model: Transfusion,
    x: Float[Array, "B T W"],
    cache: Cache,
    places: Int[Array, "_ T ..."],
    media: Media | None = None,
) -> tuple[Float[Array, "B T W"], tuple[Past, ...]]:
    """Hidden states of elements that follow what the rows hold, and their keys and values.

    Args:
        model: bound to its parameters.
        x: the elements: an image's patches and what follows it, or text alone.
        cache: what the rows hold.
        places: the elements' positions, counted from each row's next one.
        media: the image with which they begin.
    """
    length, index = cache.length[:, None], jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    patches = jnp.zeros_like(length) if media is None else media.sizes
    together = (index < patches) & (model.config.image_attention == "bidirectional")
    spans = Spans(jnp.zeros_like(index), length + jnp.where(together, patches, index + 1))
    positions = cache.position.reshape(-1, *(1,) * (places.ndim - 1)) + places
    return model.trunk(x, spans, positions, cache, index[:, :0] if media is None else media.element)
