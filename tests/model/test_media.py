"""Items of any shape: what stands beside one, and how much room there is, changes nothing about it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import random_text, special, tiny_config
from transfusion_jax.data.batch import stack
from transfusion_jax.data.documents import Document, Image
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.diffusion import objective
from transfusion_jax.model.media import following_positions, patchify, text_positions, unpatchify
from transfusion_jax.tasks.transfusion import Totals, TransfusionTask

SHAPES = ((8, 8), (4, 12), (12, 4), (2, 2), (6, 8), (2, 16))
KEY = jax.random.key(5)
CODERS = {
    "linear": {},
    "unet": dict(model__patch_coder="unet", model__unet_channels=(8, 16), model__unet_blocks=1),
    "deep unet": dict(model__patch_coder="unet", model__patch_size=4, model__unet_channels=(4, 8, 8)),
    "untied, three axes": dict(model__modality_weights="untied", model__rope_sections=(2, 1, 1)),
}

QUICK = {
    ("linear", (8, 8)),
    ("linear", (4, 12)),
    ("linear", (12, 4)),
    ("unet", (4, 12)),
}  # the others compile for long
WITH_SHAPES = [
    pytest.param(coder, shape, marks=[] if (coder, shape) in QUICK else [pytest.mark.slow])
    for coder in CODERS
    for shape in ((8, 8), (4, 12), (12, 4))
]


def config_of(shape=(8, 8), max_side=16, **changes):
    plain = dict(data__image_first=0.0, data__caption_dropout=0.0, data__context_length=112, data__max_images=6)
    larger = dict(model__init_std=0.3)  # so that what one element does to another shows
    return tiny_config(model__latent_shape=(*shape, 2), model__max_side=max_side, **(plain | larger | changes))


def image(random, shape):
    return Image(random.standard_normal((*shape, 2)).astype(np.float32))


def row_of(documents, config, number=0):
    return assemble(number, [Piece(d, 0, d.length(config.model), 0) for d in documents], config, special())


def batch_of(documents, config, number=0):
    return stack([row_of(documents, config, number)])


def parameters(task):
    params = task.init(jax.random.key(0))
    return jax.tree.map(lambda p: p + 0.05 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)  # none is zero


def losses(config, batch):
    task = TransfusionTask(config)
    params = parameters(task)
    tokens, items = jax.jit(lambda p: task.element_losses(p, batch, KEY))(params)
    return np.sum(tokens.loss * tokens.weight), np.asarray(items["images"].loss)[0], items["images"].timesteps[0]


@pytest.mark.parametrize(("coder", "shape"), WITH_SHAPES)
def test_a_model_of_any_shape_is_on_one_shape_the_model_of_that_shape(coder, shape):
    """Text and image losses of one document, noise and all, in a row with much room and in one with little."""
    random = np.random.default_rng(0)
    document = Document((random_text(random, 3, 5), image(random, shape), random_text(random, 2, 4)))
    several, one = config_of(**CODERS[coder]), config_of(shape, 0, **CODERS[coder])
    text, of_images, times = losses(several, batch_of([document], several))
    expected_text, expected_images, expected_times = losses(one, batch_of([document], one))
    np.testing.assert_allclose(text, expected_text, rtol=1e-5)
    np.testing.assert_allclose(of_images[0], expected_images[0], rtol=1e-5)
    assert times[0] == expected_times[0]
    assert math.isfinite(of_images.sum())


@pytest.mark.slow
@pytest.mark.parametrize("coder", ["unet", "deep unet"])
def test_its_gradients_are_the_same_too(coder):
    document = Document((random_text(np.random.default_rng(0), 3, 5), image(np.random.default_rng(1), (4, 12))))
    found, expected = (
        gradients(config, batch_of([document], config))
        for config in (config_of(**CODERS[coder]), config_of((4, 12), 0, **CODERS[coder]))
    )
    assert_close(found, expected)


def gradients(config, batch):
    """Of the losses of all images, added up."""
    task = TransfusionTask(config)

    @jax.jit
    @jax.grad
    def found(params):
        _, items = task.element_losses(params, batch, KEY)
        return jnp.sum(items["images"].loss * batch.media["images"].weight)

    return found(parameters(task))


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max() + 1e-9, rtol=1e-3),
        found,
        expected,
    )


@pytest.mark.parametrize(
    "coder", [pytest.param(coder, marks=[pytest.mark.slow] * coder.startswith("deep")) for coder in CODERS]
)
def test_items_beside_an_item_change_nothing_about_it(coder):
    """Each of several documents, images shown clean, is in a packed row what it is alone."""
    random = np.random.default_rng(1)
    shapes = ((8, 8), (4, 12), (12, 4)) if coder == "deep unet" else SHAPES
    documents = [Document((random_text(random, 2, 4), image(random, s), random_text(random, 2, 4))) for s in shapes]
    config = config_of(**CODERS[coder])
    clean = [
        Document(tuple(dataclasses.replace(s, loss=False) if isinstance(s, Image) else s for s in d.segments))
        for d in documents
    ]
    task = TransfusionTask(config)
    params = task.init(jax.random.key(0))

    @jax.jit
    def hidden_and_predicted(batch):
        model, media = task.model.bind(params), batch.media["images"]
        times = jnp.zeros(media.weight.shape, jnp.int32)
        x, skips = model.embed(batch.tokens, batch.patch, media, times)
        hidden, _ = model.trunk(x, batch.spans, batch.positions, patch_places=media.element)
        return hidden[0], model.denoise(hidden, media, times, skips)[0]

    packed = batch_of(clean, config)
    all_hidden, all_predicted = hidden_and_predicted(packed)
    begin = patch = 0
    for number, document in enumerate(clean):
        alone = batch_of([document], config)
        hidden, predicted = hidden_and_predicted(alone)
        length, patches = document.length(config.model), document.area // config.model.patch_area
        assert np.sum(packed.media["images"].item == number) == patches
        np.testing.assert_allclose(all_hidden[begin : begin + length], hidden[:length], rtol=2e-4, atol=2e-5)
        here = all_predicted[patch : patch + patches]
        np.testing.assert_allclose(here, predicted[:patches], rtol=2e-4, atol=2e-5)
        begin, patch = begin + length, patch + patches


def test_an_items_noise_is_a_flat_draw_in_the_order_of_its_values():
    """The same in rows with other room, of models whose largest item is larger, and of items of one size."""
    random = np.random.default_rng(2)
    documents = [Document((image(random, shape),)) for shape in SHAPES]
    room = (
        config_of(),
        config_of(data__max_images=9, data__max_patches=100),
        config_of((16, 16), data__context_length=128),
    )
    keys = objective.image_keys(KEY, jnp.array([3]), 9)
    for config in room:
        media = batch_of(documents, config, 3).media["images"]
        found = objective.item_noise(keys[:, : config.data.max_images], media, config.model)[0]
        for number, shape in enumerate(SHAPES):
            flat = jax.random.normal(keys[0, number], (shape[0] * shape[1] * 2,))
            of_item = np.asarray(found)[np.asarray(media.item[0]) == number]
            np.testing.assert_array_equal(of_item, patchify(np.asarray(flat).reshape(*shape, 2), 2))
    one = config_of((4, 12), 0)
    media = batch_of([Document((image(random, (4, 12)),))] * 2, one, 3).media["images"]
    found = objective.item_noise(keys[:, :6], media, one.model)[0, 1]
    flat = jax.random.normal(keys[0, 1], (4 * 12 * 2,))
    np.testing.assert_array_equal(found, np.asarray(flat).reshape(4, 12, 2))


@pytest.mark.parametrize("max_side", [0, 16])
def test_values_of_items_go_to_their_patches_and_back(max_side):
    random = np.random.default_rng(3)
    config = config_of(max_side=max_side)
    shapes = SHAPES if max_side else ((8, 8),) * 4
    media = batch_of([Document((image(random, shape),)) for shape in shapes], config).media["images"]
    of_items = random.standard_normal((1, 6, 3)).astype(np.float32)
    of_patches = random.standard_normal(media.patches.shape).astype(np.float32)
    values = media.unpack(of_patches, config.model)
    np.testing.assert_array_equal(media.pack(values, config.model), of_patches)
    spread, mean = media.spread(jnp.asarray(of_items)), media.mean(values)
    for number in range(len(shapes)):
        own = media.item[0] == number
        assert own.sum() == media.sizes[0, number] == shapes[number][0] * shapes[number][1] // 4
        np.testing.assert_array_equal(spread[0, own], np.tile(of_items[0, number], (own.sum(), 1)))
        np.testing.assert_allclose(mean[0, number], of_patches[0, own].mean(), atol=1e-6)


def test_an_items_loss_is_the_mean_over_its_own_values():
    """A large item weighs as much as a small one: the sum over rows is divided by the number of items."""
    random = np.random.default_rng(4)
    config = config_of()
    batch = batch_of([Document((image(random, shape),)) for shape in SHAPES], config)
    task = TransfusionTask(config)
    params = task.init(jax.random.key(0))
    _, of_items, _ = losses(config, batch)
    assert np.all(of_items > 0)
    _, items = jax.jit(lambda p: task.element_losses(p, batch, KEY))(params)
    _, metrics = jax.jit(lambda p: task.loss(p, batch, KEY, Totals.of(batch)))(params)
    total, count = metrics.sums["loss_image"]
    assert count == len(SHAPES)
    np.testing.assert_allclose(total, items["images"].loss.sum(), rtol=1e-6)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 2)])
def test_positions_of_three_axes_are_those_of_qwen2_vl(grid):
    """Against the words of arXiv 2409.12191, section 2.1: text goes on one behind the largest."""
    count = grid[0] * grid[1] + 3
    (found,) = following_positions(jnp.array([grid]), count, axes=True)
    expected = [(0, y, x) for y in range(grid[0]) for x in range(grid[1])]
    largest = max(max(place) for place in expected)
    expected += [(largest + 1 + i,) * 3 for i in range(3)]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(following_positions(jnp.array([grid]), count, axes=False)[0], np.arange(count))
    np.testing.assert_array_equal(
        following_positions(jnp.array([[0, 0]]), 4, axes=True)[0], text_positions(4, True)
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_patches_and_latents_are_each_others_inverse(size):
    latents = np.random.default_rng(0).standard_normal((2, 8, 12, 3)).astype(np.float32)
    patches = patchify(latents, size)
    np.testing.assert_array_equal(patches[1, 1].reshape(size, size, 3), latents[1, :size, size : 2 * size])
    np.testing.assert_array_equal(unpatchify(patches, size, (8 // size, 12 // size)), latents)
