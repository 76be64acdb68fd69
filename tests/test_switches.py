"""The switches: each changes what it should, in training and in sampling, and nothing else."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from helpers import latents, random_image, random_text, special, tiny_batch, tiny_codec, tiny_config
from transfusion_jax import config as configs
from transfusion_jax.config import PATCH_CODERS, ConfigError
from transfusion_jax.data.batch import stack
from transfusion_jax.data.documents import Document
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.diffusion.noise_schedules import cosine, linear
from transfusion_jax.generation.single import draw_images
from transfusion_jax.kernels.spans import Spans, check_spans
from transfusion_jax.tasks.transfusion import Totals, TransfusionTask

SMALL = dict(model__layers=1, sampling__steps=4, batch_rows=4)
UNET = dict(model__patch_coder="unet", model__unet_channels=(8, 16), model__unet_blocks=1)


@pytest.mark.parametrize(
    "switch",
    [
        dict(diffusion__objective="v"),
        dict(diffusion__objective="x"),
        dict(diffusion__objective="flow"),
        dict(diffusion__schedule="linear"),
    ],
    ids=str,
)
def test_objective_and_schedule_change_the_images_alone(switch):
    config, base = tiny_config(**SMALL, **switch), tiny_config(**SMALL)
    assert same(tiny_batch(config), tiny_batch(base)) == set(fields())
    other, usual = task_and_params(config), task_and_params(base)
    jax.tree.map(np.testing.assert_array_equal, other[1], usual[1])
    found, expected = (losses(*one, captioned(config)) for one in (other, usual))
    assert found["loss_text"] == pytest.approx(expected["loss_text"], rel=1e-6)
    assert abs(found["loss_image"] - expected["loss_image"]) > 1e-4
    assert np.abs(drawn(*other) - drawn(*usual)).max() > 1e-3


@pytest.mark.parametrize(("objective", "expected"), [("epsilon", 1), ("v", 1), ("x", 1), ("flow", 2)])
def test_the_loss_is_of_the_objectives_own_target(objective, expected):
    """Of a model that predicts nothing it is the target's mean square, where images are of unit variance."""
    switch = {} if objective == "epsilon" else dict(diffusion__objective=objective)  # so that programs are shared
    task, params = task_and_params(tiny_config(**SMALL, **switch))
    silent = {**params["patch_coder"], "patch_out": np.zeros_like(params["patch_coder"]["patch_out"])}
    found = losses(task, {**params, "patch_coder": silent}, captioned(task.config))
    assert found["loss_image"] == pytest.approx(expected, rel=0.2)


def test_the_linear_schedule_is_used_where_it_is_named():
    by_name = {name: tiny_config(diffusion__schedule=name) for name in ("auto", "cosine", "linear")}
    tables = {name: TransfusionTask(config).schedule.alpha_bar for name, config in by_name.items()}
    np.testing.assert_array_equal(tables["auto"], cosine(1000).alpha_bar)
    np.testing.assert_array_equal(tables["cosine"], cosine(1000).alpha_bar)
    np.testing.assert_array_equal(tables["linear"], linear(1000).alpha_bar)
    line = TransfusionTask(tiny_config(diffusion__objective="flow")).schedule
    np.testing.assert_allclose(line.signals + line.noises, 1)


def test_causal_images_change_the_spans_of_patches_alone():
    config, base = tiny_config(**SMALL, model__image_attention="causal"), tiny_config(**SMALL)
    one, other = tiny_batch(config), tiny_batch(base)
    assert set(fields()) - same(one, other) == {"span_end"}
    patches = one.patch >= 0
    np.testing.assert_array_equal(one.span_end, np.broadcast_to(np.arange(48) + 1, (4, 48)))
    np.testing.assert_array_equal(one.span_end[~patches], other.span_end[~patches])
    check_spans(Spans(one.span_start, one.span_end))
    found, expected = task_and_params(config), task_and_params(base)
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    before, after = losses(*expected, captioned(base)), losses(*found, captioned(config))
    assert after["loss_text"] == pytest.approx(before["loss_text"], rel=1e-6)
    assert abs(after["loss_image"] - before["loss_image"]) > 1e-6
    assert np.abs(drawn(*found) - drawn(*expected)).max() > 1e-4


def test_images_before_text_are_shown_clean_as_often_as_asked_and_text_keeps_its_loss():
    image_first = dict(data__image_first=0.5, **SMALL)
    base, half, all_ = (tiny_config(**image_first, data__clean_context=p) for p in (0.0, 0.5, 1.0))
    usual, some, every = (tiny_batch(config, rows=60) for config in (base, half, all_))
    for batch in (some, every):
        assert set(fields()) - same(batch, usual) == {"images.weight", "images.timestep_limit"}
    usual, some, every = (batch.media["images"] for batch in (usual, some, every))
    np.testing.assert_array_equal(every.weight, usual.weight * ~usual.comes_first)
    np.testing.assert_array_equal(every.timestep_limit, usual.timestep_limit * ~usual.comes_first)
    clean = (some.weight == 0) & (usual.weight > 0)
    assert not np.any(clean & ~usual.comes_first)
    assert np.mean(clean[usual.comes_first]) == pytest.approx(0.5, abs=0.15)
    np.testing.assert_array_equal(some.timestep_limit == 0, some.weight == 0)


def test_in_a_mixed_document_every_image_with_text_after_it_can_be_shown_clean():
    random = np.random.default_rng(0)
    segments = [random_text(random, 2, 3), random_image(random), random_text(random, 2, 3), random_image(random)]
    whole = Document((*segments, random_text(random, 1, 2)))
    open_end = Document(tuple(segments))
    config = tiny_config(data__clean_context=1.0)
    for document, expected in ((whole, [0, 0]), (open_end, [0, 1])):
        row = assemble(0, [Piece(document, 0, document.length(config.model), 0)], config, special())
        plain = assemble(0, [Piece(document, 0, document.length(config.model), 0)], tiny_config(), special())
        assert row.media["images"].weight[:2].tolist() == expected
        assert (row.media["images"].timestep_limit[:2] > 0).tolist() == [bool(e) for e in expected]
        np.testing.assert_array_equal(row.token_weight, plain.token_weight)
        np.testing.assert_array_equal(latents(row, config), latents(plain, config))


def test_the_noise_limit_and_lambda_are_honoured():
    base = tiny_config(**SMALL, data__image_first=1.0, diffusion__image_first_limit=1000)
    limited = tiny_config(**SMALL, data__image_first=1.0, diffusion__image_first_limit=1)
    assert set(fields()) - same(tiny_batch(base), tiny_batch(limited)) == {"images.timestep_limit"}
    usual, doubled = tiny_config(**SMALL), tiny_config(**SMALL, image_loss_weight=10.0)
    one, two = (losses(*task_and_params(config), captioned(config)) for config in (usual, doubled))
    assert two["loss_image"] == pytest.approx(one["loss_image"], rel=1e-6)
    assert two["loss"] - one["loss"] == pytest.approx(5 * one["loss_image"], rel=1e-4)


def test_no_coder_is_the_linear_one_of_single_pixels():
    none, single = (tiny_config(**SMALL, model__patch_size=1, model__patch_coder=c) for c in ("none", "linear"))
    assert PATCH_CODERS["none"] is PATCH_CODERS["linear"]
    jax.tree.map(np.testing.assert_array_equal, task_and_params(none)[1], task_and_params(single)[1])
    assert same(tiny_batch(none), tiny_batch(single)) == set(fields())


def test_the_coder_changes_the_coder_alone():
    unet, base = tiny_config(**SMALL, **UNET), tiny_config(**SMALL)
    assert same(tiny_batch(unet), tiny_batch(base)) == set(fields())
    found, expected = task_and_params(unet), task_and_params(base)
    for part in ("embedding", "trunk", "text_head"):
        jax.tree.map(np.testing.assert_array_equal, found[1][part], expected[1][part])
    one, two = (losses(*each, captioned(base)) for each in (found, expected))
    assert one["loss_text"] == pytest.approx(two["loss_text"], rel=1e-6)
    assert np.abs(drawn(*found) - drawn(*expected)).max() > 1e-3


def with_attention(params, change):
    """Parameters with those of attention changed."""
    layers = params["trunk"]["layers"]
    changed = {**layers, "attention": change(layers["attention"])}
    return {**params, "trunk": {**params["trunk"], "layers": changed}}


def repeated_keys(attention):
    """Two heads of eight channels where one was for both."""
    return {name: np.tile(leaf, 2) if name in ("key", "value") else leaf for name, leaf in attention.items()}


def without_biases(attention):
    return {name: leaf for name, leaf in attention.items() if not name.endswith("_bias")}


AS_BEFORE = {  # switches, and the parameters that a model without them has to be the same
    "kv_heads": (dict(model__kv_heads=1), lambda params: with_attention(params, repeated_keys)),
    "tied_embeddings": (dict(model__tied_embeddings=True), lambda p: {**p, "text_head": p["embedding"].T}),
    "attention_bias": (dict(model__attention_bias=True), lambda params: with_attention(params, without_biases)),
    "head_dim": (dict(model__head_dim=8), lambda params: params),
    "linear": (dict(model__rope_scaling="linear"), lambda params: params),  # by a factor of 1
    "llama3": (dict(model__rope_scaling="llama3"), lambda params: params),
}


@pytest.mark.parametrize(
    "switch",
    ["kv_heads", "tied_embeddings", *(pytest.param(s, marks=pytest.mark.slow) for s in list(AS_BEFORE)[2:])],
)
def test_a_switch_of_the_trunk_is_what_a_model_without_it_can_do(switch):
    changes, to_plain = AS_BEFORE[switch]
    config, base = tiny_config(**SMALL, **changes), tiny_config(**SMALL)
    assert same(tiny_batch(config), tiny_batch(base)) == set(fields())
    (task, params), (plain, fresh) = task_and_params(config), task_and_params(base)
    for part in ("embedding", "patch_coder"):
        jax.tree.map(np.testing.assert_array_equal, params[part], fresh[part])
    twin = to_plain(params)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), twin, fresh)
    batch = captioned(base)
    assert losses(task, params, batch) == pytest.approx(losses(plain, twin, batch), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [dict(), dict(model__rope_original_context=16)], ids=["linear", "llama3"])
def test_scaled_rotary_embeddings_change_what_a_model_makes_of_its_parameters(more):
    changes = dict(model__rope_scaling="llama3" if more else "linear", model__rope_factor=8.0, **more)
    config, base = tiny_config(**SMALL, **changes), tiny_config(**SMALL)
    (task, params), (plain, fresh) = task_and_params(config), task_and_params(base)
    jax.tree.map(np.testing.assert_array_equal, params, fresh)
    random = np.random.default_rng(0)  # fresh weights look everywhere alike
    moved = jax.tree.map(lambda p: p + 0.5 * random.standard_normal(p.shape, np.float32), params)
    scaled, usual = (losses(each, moved, captioned(base)) for each in (task, plain))
    assert abs(scaled["loss_text"] - usual["loss_text"]) > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(diffusion__objective="eps"), "diffusion.objective is 'eps'; did you mean 'epsilon'"),
        (dict(diffusion__schedule="cosin"), "diffusion.schedule is 'cosin'; did you mean 'cosine'"),
        (dict(diffusion__objective="flow", diffusion__schedule="cosine"), "leave diffusion.schedule at auto"),
        (dict(diffusion__objective="flow", diffusion__schedule="linear"), "leave diffusion.schedule at auto"),
        (
            dict(
                diffusion__schedule="linear",
                diffusion__timesteps=20,
                diffusion__image_first_limit=20,
                sampling__steps=20,
            ),
            "linear takes more than 20 timesteps, not 20",
        ),
        (dict(diffusion__timestep_distribution="normal"), "did you mean 'logit_normal'"),
        (dict(diffusion__timestep_mean=0.5), "timestep_mean is 0.5; it goes with diffusion.timestep_distribution"),
        (
            dict(diffusion__timestep_distribution="beta", diffusion__timestep_deviation=2.0),
            "timestep_deviation is 2.0; it goes with diffusion.timestep_distribution logit_normal, not beta: leave",
        ),
        (
            dict(diffusion__timestep_distribution="logit_normal", diffusion__timestep_beta=(2.0, 2.0)),
            "diffusion.timestep_beta is (2.0, 2.0); it goes with diffusion.timestep_distribution beta",
        ),
        (
            dict(diffusion__timestep_distribution="logit_normal", diffusion__timestep_mean=11),
            "diffusion.timestep_mean must lie between -10 and 10, not 11",
        ),
        (
            dict(diffusion__timestep_distribution="logit_normal", diffusion__timestep_deviation=0),
            "diffusion.timestep_deviation must lie between 0.01 and 10, not 0",
        ),
        (
            dict(diffusion__timestep_distribution="beta", diffusion__timestep_beta=(1.0, 0.0)),
            "diffusion.timestep_beta must be two numbers from 0.1 to 100, not [1.0, 0.0]",
        ),
        (dict(diffusion__timestep_base=-1), "diffusion.timestep_base must not be negative, not -1"),
        (dict(sampling__spacing="even"), "sampling.spacing is 'even'; valid: auto, trailing"),
        (dict(model__image_attention="both"), "model.image_attention is 'both'"),
        (dict(model__patch_coder="none"), "none takes 1×1 patches: set model.patch_size to 1, not 2"),
        (dict(model__unet_channels=(8, 16)), "model.unet_channels goes with model.patch_coder unet alone"),
        (dict(model__unet_blocks=1), "model.unet_blocks goes with model.patch_coder unet alone"),
        (dict(model__patch_coder="unet", model__unet_blocks=0), "model.unet_blocks must be positive"),
        (
            UNET | dict(model__unet_channels=(8,)),
            "model.unet_channels takes 2 positive numbers with model.patch_size 2",
        ),
        (UNET | dict(model__unet_channels=(8, -8)), "model.unet_channels takes 2 positive numbers"),
        (
            UNET | dict(model__latent_shape=(6, 6, 2), model__patch_size=3),
            "unet halves the image: model.patch_size 1, 2, 4 or 8, not 3",
        ),
        (dict(data__clean_context=1.5), "data.clean_context must lie between 0 and 1"),
    ],
    ids=str,
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        tiny_config(**changes)
    assert message in str(caught.value)


def task_and_params(config):
    """One task for equal configs, so that its programs are compiled once."""
    return made(json.dumps(configs.to_dict(config)))


@functools.cache
def made(values):
    task = TransfusionTask(configs.parse(json.loads(values)))
    return task, jax.tree.map(np.asarray, jax.jit(task.init)(jax.random.key(0)))


def losses(task, params, batch):
    """The logged losses of a batch, as a step computes them."""
    value, metrics = loss(task, params, batch)
    means = {name: float(metrics.sums[name][0] / metrics.sums[name][1]) for name in ("loss_text", "loss_image")}
    return means | {"loss": float(value)}


@functools.partial(jax.jit, static_argnums=0)
def loss(task, params, batch):
    return task.loss(params, batch, jax.random.key(1), Totals.of(batch))


def drawn(task, params):
    """Images of moved parameters: fresh ones can predict nothing, whatever they see."""
    random = np.random.default_rng(0)
    moved = jax.tree.map(lambda p: p + 0.05 * random.standard_normal(p.shape, np.float32), params)
    (image,) = draw_images(task, moved, tiny_codec(), ["abc"], 0, task.config.sampling_with(guidance=1.0))
    return image


def captioned(config):
    """Rows of a caption and an image; what comes after the image bears no loss, so that no text loss sees noise."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_first=0, caption_dropout=0))
    random, rows = np.random.default_rng(0), []
    for row in range(16):
        document = Document((random_text(random, 5, 6), random_image(random)))
        piece = Piece(document, 0, document.length(config.model), 0)
        rows.append(assemble(row, [piece], config, special()))
        rows[-1].token_weight[np.argmax(rows[-1].patch >= 0) :] = 0
    return stack(rows)


def fields():
    return list(arrays(tiny_batch(tiny_config())))


def arrays(batch):
    """A batch's arrays by name."""
    images = {f"images.{name}": array for name, array in vars(batch.media["images"]).items()}
    return {name: array for name, array in vars(batch).items() if name != "media"} | images


def same(one, other):
    """Names of the arrays that are equal in two batches."""
    one, other = arrays(one), arrays(other)
    return {name for name in fields() if np.array_equal(one[name], other[name])}
