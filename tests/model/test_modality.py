"""Weights of patches alone: what goes through them, and what training leaves as it was."""

import copy
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import embed_at, slots, tiny_batch, tiny_config
from transfusion_jax.config import PATCHES, ConfigError
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.kv_cache import Cache
from transfusion_jax.model.transfusion import Model
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.step.state import new_state
from transfusion_jax.training.step.step import train_step

UNTIED = tiny_config(model__modality_weights="untied")


@functools.partial(jax.jit, static_argnames="config")
def embedded(params, batch, config=UNTIED.model):
    return embed_at(Model(config).bind(params), batch, 7)[0]


@functools.partial(jax.jit, static_argnames="config")
def hidden_of(params, batch, config=UNTIED.model):
    x = embedded(params, batch, config)
    places = batch.media["images"].element
    return Model(config).bind(params).trunk(x, batch.spans, batch.positions, patch_places=places)[0]


@jax.jit
def go_on(params, cache, x, places, spans, positions):
    """A cache with more elements, and what the trunk makes of them."""
    hidden, present = Model(UNTIED.model).bind(params).trunk(x, spans, positions, cache, places)
    return cache.append(present, x.shape[1], hidden), hidden


def twins(params):
    """The same parameters, those of patches as those of text."""
    params = copy.deepcopy(params)
    layers = params["trunk"]["layers"]
    layers[PATCHES] = {name: block for name, block in layers.items() if name != PATCHES}
    return params


def test_with_equal_weights_nothing_changes():
    batch = tiny_batch(UNTIED)
    params = twins(Model(UNTIED.model).init(jax.random.key(0)))
    shared = copy.deepcopy(params)
    del shared["trunk"]["layers"][PATCHES]
    np.testing.assert_allclose(
        hidden_of(params, batch), hidden_of(shared, batch, tiny_config().model), rtol=1e-5, atol=1e-5
    )


def test_patches_and_only_patches_go_through_their_own_weights():
    batch = tiny_batch(UNTIED)
    params = Model(UNTIED.model).init(jax.random.key(0))
    moved = copy.deepcopy(params)
    moved["trunk"]["layers"][PATCHES]["mlp"]["down"] += 0.1
    # after one layer, so that what attention passes on is not looked at
    one = tiny_config(model__modality_weights="untied", model__layers=1).model
    first, other = (jax.tree.map(lambda x: x, p) for p in (params, moved))
    for tree in (first, other):
        tree["trunk"]["layers"] = jax.tree.map(lambda x: x[:1], tree["trunk"]["layers"])
    changed = np.abs(hidden_of(first, batch, one) - hidden_of(other, batch, one)).max(-1) > 1e-6
    np.testing.assert_array_equal(changed, batch.patch >= 0)


def test_text_before_an_image_does_not_hear_of_the_weights_of_patches():
    batch = tiny_batch(UNTIED)
    params = Model(UNTIED.model).init(jax.random.key(0))
    moved = copy.deepcopy(params)
    moved["trunk"]["layers"][PATCHES] = jax.tree.map(lambda x: x + 0.1, moved["trunk"]["layers"][PATCHES])
    changed = np.abs(hidden_of(params, batch) - hidden_of(moved, batch)).max(-1) > 1e-6
    seen = np.cumsum(batch.patch >= 0, axis=1)
    before = np.take_along_axis(np.pad(seen, ((0, 0), (1, 0))), np.asarray(batch.span_start), 1)
    np.testing.assert_array_equal(changed, seen - before > 0)  # a patch, or text that follows one in its document


def test_a_cache_gives_what_the_whole_row_does():
    batch = jax.tree.map(lambda x: x[:1], tiny_batch(UNTIED))
    params, length = Model(UNTIED.model).init(jax.random.key(0)), batch.tokens.shape[1]
    x, cache, parts = embedded(params, batch), Cache.empty(UNTIED.model, 1, length), []
    slot, element = slots(batch)[0], batch.media["images"].element
    cuts = [0, *(np.flatnonzero(np.diff(slot)) + 1).tolist(), length]  # texts and images apart
    for begin, end in itertools.pairwise(cuts):
        spans = Spans(*(s[:, begin:end] for s in batch.spans))
        places = np.where((begin <= element) & (element < end), element - begin, end - begin)
        inputs = x[:, begin:end], places, spans, batch.positions[:, begin:end]
        cache, part = go_on(params, cache, *inputs)
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), hidden_of(params, batch), rtol=1e-4, atol=1e-5)


def test_frozen_text_is_left_to_the_bit_and_the_rest_learns():
    config = tiny_config(model__modality_weights="untied", optimizer__frozen="text", optimizer__warmup_steps=0)
    task = TransfusionTask(config)
    state = new_state(task, config)
    after, _ = jax.jit(lambda s, b: train_step(task, config, s, b))(state, tiny_batch(config))
    learnt = set()
    for (path, old), new in zip(
        jax.tree.leaves_with_path(state.params), jax.tree.leaves(after.params), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        own = f"/{PATCHES}/" in name or name.startswith("patch_coder")
        assert own or np.array_equal(old, new), name
        learnt |= {name} if own and not np.array_equal(old, new) else set()
    assert "trunk/layers/patches/attention/query" in learnt
    assert "patch_coder/patch_in" in learnt


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_of_frozen_text_are_zero_and_cost_nothing(parts):
    def compiled(frozen):
        changes = dict(model__modality_weights="untied", optimizer__frozen=frozen, accumulation=parts)
        config = tiny_config(batch_rows=2, **changes)
        task, batch = TransfusionTask(config), tiny_batch(config)
        inputs = task.init(jax.random.key(0)), batch, jax.random.key(1), 0
        program = jax.jit(lambda *each: task.gradients(*each)[0]).lower(*inputs).compile()
        return program(*inputs), program.cost_analysis()["flops"]

    (frozen, fewer), (learnt, flops) = compiled("text"), compiled("none")
    for (path, gradient), usual in zip(jax.tree.leaves_with_path(frozen), jax.tree.leaves(learnt), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        own = f"/{PATCHES}/" in name or name.startswith("patch_coder")
        expected = usual if own else np.zeros_like(usual)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7, err_msg=name)
    assert fewer < 0.9 * flops


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match=r"needs model.modality_weights='untied'"):
        tiny_config(optimizer__frozen="text")
    with pytest.raises(ConfigError, match="did you mean 'untied'"):
        tiny_config(model__modality_weights="untide")
    batch, model = tiny_batch(UNTIED), Model(UNTIED.model)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="give patch_places"):
        model.bind(params).trunk(jnp.zeros((4, 48, 16)), batch.spans, batch.positions)
