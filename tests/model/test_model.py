"""The whole model: who sees whom, the cache, the patch coder, remat and dtype."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import (
    GROUPED,
    LATENT,
    SEVERAL,
    SHAPES,
    embed_at,
    random_image,
    slots,
    special,
    tiny_batch,
    tiny_config,
)
from transfusion_jax.data.batch import stack
from transfusion_jax.data.documents import Document, Text
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.kernels.attention.blocked import KEY_BLOCK, QUERY_BLOCK
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.kv_cache import Cache
from transfusion_jax.model.layers import take_elements
from transfusion_jax.model.media import patchify, unpatchify
from transfusion_jax.model.transfusion import Model


def test_perturbing_an_element_moves_exactly_the_outputs_that_the_mask_allows():
    config, batch = probe_row()
    model = Model(config.model)
    params = model.init(jax.random.key(0))
    length = config.data.context_length
    start, end = np.asarray(batch.span_start[0]), np.asarray(batch.span_end[0])
    key = np.arange(length)
    allowed = (start[:, None] <= key) & (key < end[:, None])  # one layer: [output, input]
    reach = allowed.copy()
    for _ in range(config.model.layers - 1):
        reach = (reach.astype(int) @ allowed.astype(int)) > 0  # what several layers pass on
    assert np.array_equal(reach, allowed)  # a span mask is closed: depth reveals nothing more

    def outputs(offset):
        x, _ = embedded(model, params, batch)
        hidden, _ = model.bind(params).trunk(x + offset, batch.spans, batch.positions)
        return hidden[0]

    jacobian = jax.jit(jax.jacobian(lambda offset: outputs(offset).sum(-1)))(jnp.zeros((1, length, 16)))
    moved = np.abs(np.asarray(jacobian)).max(axis=(1, 3)) > 1e-9  # [output, input]
    np.testing.assert_array_equal(moved, allowed)


@pytest.mark.parametrize("changes", [{}, SEVERAL, dict(SEVERAL, model__rope_sections=(2, 1, 1))])
def test_an_image_reaches_only_itself_and_what_follows_in_its_document(changes):
    """Images 0 and 1 stand in one document, in this order; image 2 in another; slot 3 is empty."""
    config, batch = probe_row(**changes)
    model, media = Model(config.model), batch.media["images"]
    params = model.init(jax.random.key(0))

    def outputs(patches):
        noised = dataclasses.replace(media, patches=patches)
        times, bound = jnp.full(media.weight.shape, 7), model.bind(params)
        x, skips = bound.embed(batch.tokens, batch.patch, noised, times)
        hidden, _ = bound.trunk(x, batch.spans, batch.positions)
        predicted = bound.denoise(hidden, noised, times, skips)
        return bound.text_logits(hidden)[0, :, 0], predicted[0]

    logits, predicted = jax.jit(jax.jacobian(outputs))(jnp.asarray(media.patches))
    text_moved = np.abs(logits).max(axis=(1, 3)) > 1e-9  # [element, patch]
    patch_moved = np.abs(predicted).max(axis=(1, 2, 4)) > 1e-9  # [patch, patch]
    item, start, places = media.item[0], batch.span_start[0], np.arange(batch.tokens.shape[1])
    used = np.flatnonzero(item >= 0)
    assert set(item[used]) == {0, 1, 2}
    for patch in used:
        first = media.element[0][np.flatnonzero(item == item[patch])[0]]
        after = (places >= first) & (start == start[first])
        np.testing.assert_array_equal(text_moved[:, patch], after)
    reached = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], bool)
    np.testing.assert_array_equal(patch_moved[np.ix_(used, used)], reached[np.ix_(item[used], item[used])])
    assert not np.any(text_moved[:, item < 0])


@pytest.mark.parametrize(
    "family", [None, "qwen 3", *(pytest.param(f, marks=pytest.mark.slow) for f in ("llama 3", "qwen 2"))]
)
def test_elements_added_to_a_cache_give_what_the_whole_row_gives(family):
    config, batch, model, params, x, whole = whole_row(**GROUPED.get(family, {}))
    length = config.data.context_length
    cache, parts = Cache.empty(config.model, 1, length), []
    # Cut only where no image is cut: an image's patches see each other.
    for begin, end in [(0, 5), (5, 11), (11, 17), (17, length)]:
        spans = Spans(*(s[:, begin:end] for s in batch.spans))
        hidden, present = trunk_of(model)(params, x[:, begin:end], spans, batch.positions[:, begin:end], cache)
        parts.append(hidden)
        cache = cache.append(present, end - begin, hidden)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=1e-4, atol=1e-5)
    assert cache.length.tolist() == [length]


def test_rows_of_a_cache_go_on_from_lengths_of_their_own():
    config, batch, model, params, x, whole = whole_row()
    both = jnp.concatenate([x, x])
    first, count = np.array([11, 5]), 6  # elements that each row has, of 11 that both are given
    spans = Spans(*(jnp.concatenate([s[:, :11]] * 2) for s in batch.spans))
    places = jnp.broadcast_to(jnp.arange(11), (2, 11))
    trunk = trunk_of(model)
    hidden, present = trunk(params, both[:, :11], spans, places, Cache.empty(config.model, 2, 0))
    cache = Cache.empty(config.model, 2, 20).append(present, first, hidden)
    place = first[:, None] + np.arange(count)
    rest = jnp.take_along_axis(both, place[..., None], 1)
    spans = Spans(*(np.asarray(s)[0][place] for s in batch.spans))
    hidden, present = trunk(params, rest, spans, np.asarray(batch.positions)[0][place], cache)
    np.testing.assert_allclose(hidden, whole[0][place], rtol=1e-4, atol=1e-5)
    chosen = cache.append(present, count, hidden).rows(jnp.array([1]), 11)
    spans = Spans(*(s[:, 11:17] for s in batch.spans))
    again, _ = trunk(params, x[:, 11:17], spans, batch.positions[:, 11:17], chosen)
    np.testing.assert_allclose(again, whole[:, 11:17], rtol=1e-4, atol=1e-5)


def test_no_array_of_the_compiled_program_is_a_square_of_the_sequence():
    config = tiny_config(model__layers=3, model__heads=1, model__width=8, model__mlp_width=8)
    length = 4 * QUERY_BLOCK
    model = Model(config.model)
    x = jax.ShapeDtypeStruct((1, length, 8), jnp.float32)
    index = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(params, x, start, end, positions):
        return jnp.sum(model.bind(params).trunk(x, Spans(start, end), positions)[0])

    compiled = jax.jit(jax.grad(loss)).lower(model.abstract_params(), x, index, index, index).compile()
    shapes = re.findall(r"(?:f32|s32|pred|bf16)\[([\d,]+)\]", compiled.as_text())
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert QUERY_BLOCK * KEY_BLOCK <= largest < QUERY_BLOCK * length  # a block of scores, and nothing beyond


def test_gathered_patches_are_the_hidden_states_of_each_image():
    config, batch = probe_row()
    hidden = jnp.arange(config.data.context_length, dtype=jnp.float32)[None, :, None]
    gathered = take_elements(hidden, batch.media["images"].element)[0, :, 0].reshape(4, config.model.patches)
    for image in range(3):
        np.testing.assert_array_equal(gathered[image], np.flatnonzero(slots(batch)[0] == image))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_patches_are_row_major_and_invert(size):
    latent = jax.random.normal(jax.random.key(0), (3, *LATENT))
    patches = patchify(latent, size)
    assert patches.shape == (3, (4 // size) ** 2, size * size * 2)
    below = patches[0, 4 // size] if size < 4 else patches[0, 0]
    top = size if size < 4 else 0
    np.testing.assert_array_equal(below, latent[0, top : top + size, :size].ravel())
    np.testing.assert_array_equal(unpatchify(patches, size, (4 // size, 4 // size)), latent)


def test_the_timestep_reaches_the_prediction():
    config = tiny_config()
    batch = tiny_batch(config)
    model = Model(config.model)
    params = model.init(jax.random.key(0))
    first, other = (jax.jit(lambda t=t: embed_at(model.bind(params), batch, t)[0])() for t in (7, 16))
    moved = np.abs(first - other).max(-1) > 0
    np.testing.assert_array_equal(moved, batch.patch >= 0)


def test_padding_of_the_vocabulary_is_never_likely():
    config = tiny_config()
    model = Model(config.model)
    logits = model.bind(model.init(jax.random.key(0))).text_logits(jnp.ones((2, config.model.width)))
    assert logits.shape == (2, 128)
    assert np.all(np.isfinite(logits[:, :25]))
    assert np.all(np.isneginf(logits[:, 25:]))


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_nothing_but_memory(remat):
    results = []
    for policy in ("none", remat):
        config = tiny_config(model__remat=policy)
        batch = tiny_batch(config)
        model = Model(config.model)

        def loss(params, model=model, batch=batch):
            x, _ = embedded(model, params, batch)
            return jnp.square(model.bind(params).trunk(x, batch.spans, batch.positions)[0]).sum()

        results.append(jax.jit(jax.value_and_grad(loss))(model.init(jax.random.key(0))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


@pytest.mark.parametrize(("remat", "forward_passes"), [("none", 1), ("dots", 1), ("full", 2)])
def test_remat_of_dots_keeps_what_attention_gave(remat, forward_passes):
    config = tiny_config(model__remat=remat)
    batch = tiny_batch(config)
    model = Model(config.model)

    def loss(params):
        x, _ = embedded(model, params, batch)
        return jnp.sum(model.bind(params).trunk(x, batch.spans, batch.positions)[0])

    jaxpr = jax.make_jaxpr(jax.grad(loss))(model.abstract_params())
    exponentials = str(jaxpr).count("= exp ")  # two of a block forward, one backward
    assert exponentials == 2 * forward_passes + 1


def test_bfloat16_compute_keeps_float32_parameters_and_stays_near():
    outputs = []
    for dtype in ("float32", "bfloat16"):
        config = tiny_config(model__compute_dtype=dtype)
        batch = tiny_batch(config)
        model = Model(config.model)
        params = model.init(jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        x, _ = jax.jit(functools.partial(embedded, model))(params, batch)
        assert x.dtype == dtype
        outputs.append(trunk_of(model)(params, x, batch.spans, batch.positions)[0].astype(jnp.float32))
    np.testing.assert_allclose(*outputs, atol=0.15)


def test_parameters_by_layer_are_the_same_model():
    config, batch, model, params, x, whole = whole_row()
    apart = model.by_layer(params)
    assert len(apart["trunk"]["layers"]) == config.model.layers
    assert model.by_layer(apart) is apart
    hidden, _ = trunk_of(model)(apart, x, batch.spans, batch.positions)
    np.testing.assert_allclose(hidden, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.bind(apart).text_logits(whole), model.bind(params).text_logits(whole))


def probe_row(**changes):
    """Two images in one document, one in another, a text, and padding; where sizes differ, images of three."""
    config = tiny_config(
        data__context_length=44, data__image_first=1.0, data__caption_dropout=0.0, data__max_images=4, **changes
    )
    random = np.random.default_rng(0)
    shapes = iter(SHAPES if config.model.max_side else [LATENT[:2]] * 3)

    def text(n):
        return Text(random.integers(0, 20, n).astype(np.int32))

    def image():
        return random_image(random, *next(shapes))

    documents = [Document((text(3), image(), image(), text(2))), Document((text(1),)), Document((image(), text(4)))]
    pieces = [Piece(d, 0, d.length(config.model), 0) for d in documents]
    return config, stack([assemble(0, pieces, config, special())])


def whole_row(**changes):
    """The row of `probe_row`, a model, its parameters, and the row's elements before and after the trunk."""
    config, batch = probe_row(**changes)
    model = Model(config.model)
    params = model.init(jax.random.key(1))
    random = np.random.default_rng(2)  # so that norms and biases of heads matter, too
    params = jax.tree.map(lambda p: p + 0.1 * random.standard_normal(p.shape, np.float32), params)
    x, _ = jax.jit(functools.partial(embedded, model))(params, batch)
    whole, _ = trunk_of(model)(params, x, batch.spans, batch.positions)
    return config, batch, model, params, x, whole


@functools.cache
def trunk_of(model):
    """The trunk as one program."""
    return jax.jit(lambda params, *arguments: model.bind(params).trunk(*arguments))


def embedded(model, params, batch):
    return embed_at(model.bind(params), batch, 7)
