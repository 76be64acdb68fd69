"""Models of codes and of text alone: what their rows bear, and what their losses are."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import CODEBOOK, SEVERAL, VOCABULARY, embed_at, slots, special, tiny_batch, tiny_config, token_config
from transfusion_jax.config import ConfigError
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.model.transfusion import Model
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import batch_sharding, state_shardings
from transfusion_jax.tasks.base import make_task

KEY = jax.random.key(3)
FIRST_CODE = VOCABULARY + 5
CODES = np.arange(16, dtype=np.int32).reshape(4, 4) % CODEBOOK


def row_of(document, **changes):
    config = token_config(**(dict(data__image_first=0.0, data__caption_dropout=0.0) | changes))
    return assemble(0, [Piece(document, 0, document.length(config.model), 0)], config, special())


def pair(loss=True):
    return Document((Text(np.array([3, 4], np.int32)), Image(CODES, loss)))


def test_codes_are_tokens_that_are_learnt_from_boi_to_eoi():
    row = row_of(pair())
    expected = [special().bos, 3, 4, special().boi, *(FIRST_CODE + CODES.ravel()), special().eoi]
    np.testing.assert_array_equal(row.tokens[:21], expected)
    np.testing.assert_array_equal(row.targets[:21], [*expected[1:], special().eos])
    np.testing.assert_array_equal(row.token_weight, np.arange(48) < 21)
    np.testing.assert_array_equal(row.span_end, np.arange(48) + 1)
    np.testing.assert_array_equal(np.flatnonzero(slots(row) == 0), np.arange(4, 20))
    assert row.media["images"].patches.size == 0


def test_codes_of_any_grid_are_tokens_row_by_row():
    wide = np.arange(16, dtype=np.int32).reshape(2, 8) % CODEBOOK
    document = Document((Text(np.array([3], np.int32)), Image(wide), Image(wide.reshape(8, 2)[:3])))
    row = row_of(document, **SEVERAL, model__rope_sections=(2, 1, 1))
    tokens = [special().bos, 3, special().boi, *(FIRST_CODE + wide.ravel()), special().eoi, special().boi]
    tokens += [*(FIRST_CODE + wide.ravel()[:6]), special().eoi]
    np.testing.assert_array_equal(row.tokens[: len(tokens)], tokens)
    np.testing.assert_array_equal(row.targets[: len(tokens)], [*tokens[1:], special().eos])
    np.testing.assert_array_equal(row.token_weight, np.arange(48) < len(tokens))
    media = row.media["images"]
    np.testing.assert_array_equal(media.grid[:3], [[1, 2, 8], [1, 3, 2], [0, 0, 0]])
    np.testing.assert_array_equal(media.element[:22], [*range(3, 19), *range(21, 27)])
    np.testing.assert_array_equal(
        row.positions[[3, 10, 11, 18, 19, 20, 21]].T[1:], [[3, 3, 4, 4, 11, 12, 13], [3, 10, 3, 10, 11, 12, 13]]
    )


def test_a_dropped_caption_leaves_the_codes_loss_alone():
    row = row_of(pair(), data__caption_dropout=1.0)
    assert row.tokens[:3].tolist() == [special().bos, special().boi, FIRST_CODE]
    np.testing.assert_array_equal(np.flatnonzero(row.token_weight), np.arange(1, 18))  # BOI and the codes


def test_an_image_that_is_context_alone_bears_no_loss():
    row = row_of(pair(loss=False))
    np.testing.assert_array_equal(np.flatnonzero(row.token_weight), [0, 1])


def test_a_code_beyond_the_codebook_is_refused():
    with pytest.raises(ConfigError, match=f"code {CODEBOOK}, and model.codebook is {CODEBOOK}"):
        row_of(Document((Image(np.full((4, 4), CODEBOOK, np.int32)),)))


@pytest.mark.parametrize("images", ["codes", "none"])
def test_the_first_loss_is_that_of_a_guess(images):
    config = token_config(images, z_loss=0.0)
    _, metrics = loss(config, tiny_batch(config))
    entries = FIRST_CODE + CODEBOOK * (images == "codes")
    np.testing.assert_allclose(metrics.loss, math.log(entries), atol=0.1)


@pytest.mark.parametrize("config", [tiny_config(), token_config()], ids=["latents", "codes"])
def test_a_step_binds_its_parameters_once(config, monkeypatch):
    bound, bind = [], Model.bind
    monkeypatch.setattr(Model, "bind", lambda model, params: bound.append(params) or bind(model, params))
    task, batch = make_task(config), tiny_batch(config)
    jax.eval_shape(lambda p: task.gradients(p, batch, KEY, 0), task.model.abstract_params())
    assert len(bound) == 1


@pytest.mark.parametrize("shapes", [{}, SEVERAL])
def test_loss_and_z_loss_are_those_of_all_logits(shapes):
    config = token_config(**shapes)
    batch, task = tiny_batch(config), make_task(config)
    params = task.init(KEY)
    params["text_head"] = 30 * params["text_head"]  # away from the uniform
    value, metrics = jax.jit(lambda p: task.loss(p, batch, jnp.maximum(batch.token_weight.sum(), 1)))(params)
    x, _ = embed_at(task.model.bind(params), batch)
    hidden, _ = task.model.bind(params).trunk(x, batch.spans, batch.positions)
    logits = task.model.bind(params).text_logits(hidden)
    log_total = jax.nn.logsumexp(logits, -1)
    cross = log_total - jnp.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]
    mean = lambda x: float(np.sum(x * batch.token_weight) / np.sum(batch.token_weight))  # noqa: E731
    np.testing.assert_allclose(value, mean(cross) + config.z_loss * mean(log_total**2), rtol=1e-5)
    np.testing.assert_allclose(np.divide(*metrics.sums["loss_z"]), mean(log_total**2), rtol=1e-5)
    is_code = batch.targets >= FIRST_CODE
    total, count = metrics.sums["loss_image"]
    np.testing.assert_allclose(count, np.sum(batch.token_weight * is_code))
    np.testing.assert_allclose(total, np.sum(cross * batch.token_weight * is_code), rtol=1e-5)
    images = np.sum(batch.media["images"].weight)
    text = metrics.sums["loss_text"][1]
    np.testing.assert_allclose(text + count + images, np.sum(batch.token_weight))  # each image's EOI in neither
    for name, groups in {
        "loss_image": (("caption_first", "image_first"), ("source_pairs", "source_texts")),
        "loss_text": (("source_pairs", "source_texts"),),
    }.items():
        for group in groups:
            whole = np.sum([metrics.sums[f"{name}/{part}"] for part in group], axis=0)
            np.testing.assert_allclose(whole, metrics.sums[name], rtol=1e-5)
    assert metrics.counts["images"] == images
    assert metrics.counts["text_losses"] == np.sum(batch.token_weight)


def test_a_model_of_codes_learns_one_batch_by_heart():
    config = token_config(batch_rows=1, data__context_length=32, z_loss=0.0)
    batch, task = tiny_batch(config), make_task(config)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, moments):
        gradients, metrics = task.gradients(params, batch, KEY, 0)
        changes, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, changes), moments, metrics.loss

    params = task.init(jax.random.key(0))
    moments = optimizer.init(params)
    losses = []
    for _ in range(100):
        params, moments, value = step(params, moments)
        losses.append(float(value))
    assert losses[0] > 3
    assert losses[-1] < 0.1


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 2, "tensor": 2}])
def test_every_mesh_gives_the_gradients_of_one_device(axes):
    config = token_config(batch_rows=8, mesh={"data": 1, **axes})
    batch, task = tiny_batch(config), make_task(config)
    params = task.init(jax.random.key(0))
    expected = jax.jit(lambda p, b: task.gradients(p, b, KEY, 0))(params, batch)
    mesh = make_mesh(config.mesh)
    sharded = jax.device_put(params, state_shardings(params, mesh, task.axes()))
    with jax.set_mesh(mesh):
        placed = jax.device_put(batch, batch_sharding(mesh))
        found = jax.jit(lambda p, b: task.gradients(p, b, KEY, 0))(sharded, placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected)


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        ("codes", dict(model__codebook=0), "needs model.codebook"),
        ("none", dict(model__codebook=4), "model.codebook goes with"),
        ("codes", dict(model__patch_size=2), "model.patch_size is 2"),
        ("codes", dict(model__image_attention="bidirectional"), "needs model.image_attention='causal'"),
        ("codes", dict(image_loss_weight=1.0), "image_loss_weight goes with"),
        ("codes", dict(diffusion__timesteps=2000), "diffusion goes with"),
        ("codes", dict(data__max_text=40), "data.max_text goes with"),
        ("none", dict(loop__sample_every=5), "draws no images"),
        ("latents", dict(model__norm="post", sampling__temperature=0.5), "sampling.temperature goes with"),
    ],
)
def test_what_does_not_go_together_is_refused(images, changes, message):
    with pytest.raises(ConfigError, match=message):
        token_config(images, **changes)


def test_models_of_tokens_have_no_patch_coder():
    for images in ("codes", "none"):
        assert "patch_coder" not in make_task(token_config(images)).model.abstract_params()
    assert "patch_coder" in make_task(replace(token_config("latents"))).model.abstract_params()


def loss(config, batch):
    task = make_task(config)
    total = jnp.maximum(batch.token_weight.sum(), 1)
    return jax.jit(lambda p: task.loss(p, batch, total))(task.init(jax.random.key(0)))
