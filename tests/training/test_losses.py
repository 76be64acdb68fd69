"""The loss does not change with packing, accumulation, order of rows or sharding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import (
    LATENT,
    SEVERAL,
    SHAPES,
    random_image,
    random_text,
    special,
    tiny_batch,
    tiny_config,
    with_images,
)
from transfusion_jax.data.batch import stack
from transfusion_jax.data.documents import Document
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import batch_sharding, state_shardings
from transfusion_jax.tasks.transfusion import Totals, TransfusionTask, patches_seen

KEY = jax.random.key(3)
SIZES = [pytest.param({}, id="one size"), pytest.param(SEVERAL, id="several sizes")]


@pytest.mark.parametrize("parts", [pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("shapes", SIZES)
def test_accumulation_changes_neither_gradients_nor_metrics(parts, shapes):
    whole = gradients(tiny_config(**shapes))
    split = gradients(tiny_config(**shapes, accumulation=parts))
    assert_close(split, whole)


def test_the_order_of_rows_changes_nothing():
    config = tiny_config()
    batch = tiny_batch(config)
    order = np.array([2, 0, 3, 1])
    shuffled = jax.tree.map(lambda x: x[order], batch)
    grads, metrics = gradients(config, batch)
    metrics = dataclasses.replace(metrics, row=metrics.row[order], row_loss=metrics.row_loss[order])
    assert_close(gradients(config, shuffled), (grads, metrics))
    np.testing.assert_allclose(metrics.row_loss.sum(), metrics.loss, rtol=1e-5)


@pytest.mark.parametrize("shapes", SIZES)
def test_packing_changes_nothing_but_the_noise(shapes):
    """Documents one to a row or all in few rows: the same losses, once each image keeps its noise and time."""
    config = tiny_config(data__context_length=64, data__caption_dropout=0.0, data__image_first=0.0, **shapes)
    random = np.random.default_rng(0)
    sizes = SHAPES if shapes else [LATENT[:2]] * 5
    documents = [Document((random_text(random, 1, 9), random_image(random, *size))) for size in sizes]
    documents += [Document((random_text(random, 2, 20),)) for _ in range(3)]
    alone = pack([[d] for d in documents], config)
    packed = pack([documents[:3], documents[3:5] + documents[5:6], documents[6:]], config)
    assert alone.row.shape[0] == 8
    assert packed.row.shape[0] == 3
    results = []
    for batch in (alone, packed):
        noised, noise = fixed_noise(batch)
        results.append(jax.jit(jax.value_and_grad(loss_with_noise(config, noised, noise)))(parameters(config)))
    assert_close(*results)


def test_the_text_head_on_max_text_elements_changes_nothing():
    config = tiny_config()
    batch = tiny_batch(config)
    needed = int((batch.token_weight > 0).sum(1).max())
    assert needed < config.data.context_length
    capped = tiny_config(data__max_text=needed)
    assert_close(gradients(capped, batch), gradients(config, batch))


def test_text_and_image_losses_add_up_with_lambda():
    config = tiny_config(image_loss_weight=3.0)
    batch = tiny_batch(config)
    value, metrics = loss(config, batch)
    text, image = (np.divide(*metrics.sums[name]) for name in ("loss_text", "loss_image"))
    np.testing.assert_allclose(value, text + 3 * image, rtol=1e-6)


def test_each_split_of_the_losses_is_whole():
    config = tiny_config(batch_rows=8)
    batch = tiny_batch(config)
    _, metrics = loss(config, batch)
    for name, groups in {
        "loss_image": (("caption_first", "image_first"), [f"noise_{i}" for i in range(4)], ("source_pairs",)),
        "loss_text": (("source_pairs", "source_texts"),),
    }.items():
        for group in groups:
            total, count = (sum(metrics.sums[f"{name}/{part}"][i] for part in group) for i in (0, 1))
            np.testing.assert_allclose((total, count), metrics.sums[name], rtol=1e-5)
    counts = metrics.counts
    assert counts["elements"] == np.sum(batch.source >= 0)
    assert counts["images"] == np.sum(batch.media["images"].weight)
    assert counts["text_losses"] == np.sum(batch.token_weight)


def test_directions_follow_what_stands_before_in_the_document():
    config = tiny_config(data__context_length=64, data__image_first=0.0, data__caption_dropout=0.0)
    random = np.random.default_rng(0)
    documents = [
        Document((random_text(random, 3, 4), random_image(random), random_text(random, 2, 3))),
        Document((random_text(random, 4, 5),)),
    ]
    before, total = patches_seen(pack([documents], config))
    first, second = (document.length(config.model) for document in documents)
    np.testing.assert_array_equal(total[0, :first], 4)
    np.testing.assert_array_equal(total[0, first:], 0)
    np.testing.assert_array_equal(before[0, :6], 0)  # BOS, three tokens, BOI, the first patch
    np.testing.assert_array_equal(before[0, 9:first], 4)
    np.testing.assert_array_equal(before[0, first : first + second], 0)


@pytest.mark.parametrize(
    "axes",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"fsdp": 2, "context": 2, "tensor": 2},
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        pytest.param({"context": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "context": 4}, marks=pytest.mark.slow),
        pytest.param({"tensor": 2, "fsdp": 4}, marks=pytest.mark.slow),
    ],
)
def test_every_mesh_gives_the_gradients_of_one_device(axes):
    check_mesh(axes)


@pytest.mark.parametrize("axes", [{"fsdp": 4, "context": 2}, pytest.param({"data": 8}, marks=pytest.mark.slow)])
@pytest.mark.parametrize("coder", ["linear", "unet"])
def test_so_it_does_with_images_of_several_shapes(axes, coder):
    unet = dict(model__patch_coder="unet", model__unet_channels=(8, 16), model__unet_blocks=1)
    check_mesh(axes, **SEVERAL, **(unet if coder == "unet" else {}))


def check_mesh(axes, **changes):
    config = tiny_config(batch_rows=8, accumulation=1, mesh={"data": 1, **axes}, **changes)
    batch = tiny_batch(config)
    expected = gradients(tiny_config(batch_rows=8, **changes), batch)
    mesh = make_mesh(config.mesh)
    task = TransfusionTask(config)
    params = parameters(config)
    params = jax.device_put(params, state_shardings(params, mesh, task.axes()))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(batch, batch_sharding(mesh))
        actual = jax.jit(lambda p, b: task.gradients(p, b, KEY, 0))(params, sharded)
    assert_close(actual, expected)


def parameters(config):
    return TransfusionTask(config).init(jax.random.key(0))


def loss(config, batch):
    task = TransfusionTask(config)
    return jax.jit(lambda p: task.loss(p, batch, KEY, Totals.of(batch)))(parameters(config))


PROGRAMS = {}


def gradients(config, batch=None):
    batch = tiny_batch(config) if batch is None else batch
    if repr(config) not in PROGRAMS:
        task = TransfusionTask(config)
        PROGRAMS[repr(config)] = jax.jit(lambda p, b: task.gradients(p, b, KEY, 0))
    return PROGRAMS[repr(config)](parameters(config), batch)


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), actual, expected)


def pack(rows, config):
    def row(number, documents):
        return assemble(number, [Piece(d, 0, d.length(config.model), 0) for d in documents], config, special())

    return stack([row(number, documents) for number, documents in enumerate(rows)])


def fixed_noise(batch):
    """A batch with noised images, and the noise of each patch, which is a function of its own values."""
    media = batch.media["images"]
    noise = np.roll(np.cos(37 * media.patches), 1, axis=-1)
    limits = np.zeros_like(media.timestep_limit)
    return with_images(batch, patches=0.6 * media.patches + 0.8 * noise, timestep_limit=limits), noise


def loss_with_noise(config, noised, noise):
    task = TransfusionTask(config)

    def loss(params):
        (token_loss, _, weight), items = task.element_losses(params, noised, KEY)  # t = 0 adds no noise
        model, media, timesteps = task.model.bind(params), noised.media["images"], items["images"].timesteps
        x, skips = model.embed(noised.tokens, noised.patch, media, timesteps)
        hidden, _ = model.trunk(x, noised.spans, noised.positions)
        predicted = model.denoise(hidden, media, timesteps, skips)
        error = media.mean(jnp.square(media.unpack(predicted - noise, config.model)))
        totals = Totals.of(noised)
        return (
            jnp.sum(token_loss * weight) / totals.tokens
            + 5 * jnp.sum(error * media.weight) / totals.items["images"]
        )

    return loss


assert LATENT == (4, 4, 2)  # four patches of two by two: what the counts above rest on
