"""The loss does not change with packing, accumulation, order of rows or sharding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import LATENT, random_image, random_text, special, tiny_batch, tiny_config
from transfusion_jax.data.batch import stack
from transfusion_jax.data.documents import Document
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.model.layers import gather_patches
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import batch_sharding, state_shardings
from transfusion_jax.tasks.transfusion import Totals, TransfusionTask, patches_seen

KEY = jax.random.key(3)


@pytest.mark.parametrize("parts", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_accumulation_changes_neither_gradients_nor_metrics(parts):
    whole = gradients(tiny_config())
    split = gradients(tiny_config(accumulation=parts))
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


def test_packing_changes_nothing_but_the_noise():
    """Documents one to a row or all in few rows: the same losses, once each image keeps its noise and time."""
    config = tiny_config(data__context_length=64, data__caption_dropout=0.0, data__image_first=0.0)
    random = np.random.default_rng(0)
    documents = [Document((random_text(random, 1, 9), random_image(random))) for _ in range(5)]
    documents += [Document((random_text(random, 2, 20),)) for _ in range(3)]
    alone = pack([[d] for d in documents], config)
    packed = pack([documents[:3], documents[3:5] + documents[5:6], documents[6:]], config)
    assert alone.row.shape[0] == 8
    assert packed.row.shape[0] == 3
    results = []
    for batch in (alone, packed):
        noised, noise = fixed_noise(batch)
        results.append(
            jax.jit(jax.value_and_grad(loss_with_noise(config, batch, noised, noise)))(parameters(config))
        )
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
    assert counts["images"] == np.sum(batch.image_weight)
    assert counts["text_losses"] == np.sum(batch.token_weight)


def test_directions_follow_what_stands_before_in_the_document():
    config = tiny_config(data__context_length=64, data__image_first=0.0, data__caption_dropout=0.0)
    random = np.random.default_rng(0)
    documents = [
        Document((random_text(random, 3, 4), random_image(random), random_text(random, 2, 3))),
        Document((random_text(random, 4, 5),)),
    ]
    before, total = patches_seen(pack([documents], config))
    first, second = documents[0].length(4), documents[1].length(4)
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
    config = tiny_config(batch_rows=8, accumulation=1, mesh={"data": 1, **axes})
    batch = tiny_batch(config)
    expected = gradients(tiny_config(batch_rows=8), batch)
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
        return assemble(number, [Piece(d, 0, d.length(4), 0) for d in documents], config, special())

    return stack([row(number, documents) for number, documents in enumerate(rows)])


def fixed_noise(batch):
    """Noise that is a function of the image's own values."""
    noise = np.roll(np.cos(37 * np.asarray(batch.latents)), 1, axis=2)
    return 0.6 * batch.latents + 0.8 * noise, noise


def loss_with_noise(config, batch, noised, noise):
    task = TransfusionTask(config)

    def loss(params):
        replaced = dataclasses.replace(batch, latents=noised, timestep_limit=np.zeros_like(batch.timestep_limit))
        (token_loss, _, weight), _, timesteps = task.element_losses(params, replaced, KEY)  # t = 0 adds no noise
        model = task.model.bind(params)
        x, skips = model.embed(batch.tokens, batch.image_slot, batch.patch_index, noised, timesteps)
        hidden, _ = model.trunk(x, batch.spans, batch.positions)
        patches = gather_patches(hidden, batch.image_slot, batch.latents.shape[1], config.model.patches)
        error = jnp.square(model.denoise(patches, timesteps, skips) - noise).mean((2, 3, 4))
        totals = Totals.of(batch)
        return (
            jnp.sum(token_loss * weight) / totals.tokens + 5 * jnp.sum(error * batch.image_weight) / totals.images
        )

    return loss


assert LATENT == (4, 4, 2)  # four patches of two by two: what the counts above rest on
