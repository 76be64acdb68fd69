import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import GROUPED, tiny_config, token_config
from transfusion_jax import config as configs
from transfusion_jax.config import SPECIAL_TOKENS, ConfigError, GuardConfig
from transfusion_jax.errors import CheckpointError
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.checkpoint.partial_load import (
    _grow,
    _tokens_moved,
    other_functions,
    parse_mapping,
    transplant,
)
from transfusion_jax.training.step.bad_step_guard import new_guard
from transfusion_jax.training.step.state import State

OLD = tiny_config()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoint 3 of the tiny model: parameters, and an average that is their negative."""
    params = TransfusionTask(OLD).init(jax.random.key(5))
    state = State(jnp.int32(3), params, {}, jax.tree.map(jnp.negative, params), new_guard(GuardConfig()))
    path = tmp_path_factory.mktemp("old") / "checkpoints"
    with Checkpoints(path, about={"config": configs.to_dict(OLD)}) as checkpoints:
        checkpoints.save(state, 0, None)
    return checkpoints, params


def into(saved, config, *mapping, which="raw"):
    """The old parameters, the new model's fresh ones, what became of them, and what was said."""
    checkpoints, old = saved
    task = TransfusionTask(config)
    fresh = task.init(jax.random.key(6))
    params, notes = transplant(checkpoints, 3, which, fresh, task.axes(), config.model, parse_mapping(mapping))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, fresh)
    return old, fresh, params, notes


def test_the_same_model_takes_every_leaf(saved):
    old, _, params, notes = into(saved, OLD)
    jax.tree.map(np.testing.assert_array_equal, params, old)
    assert notes == []
    _, _, average, _ = into(saved, OLD, which="ema")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, -b), average, old)


def test_every_leaf_that_does_not_fit_is_listed_with_what_can_be_done(saved):
    with pytest.raises(CheckpointError) as refused:
        into(saved, tiny_config(model__layers=3, model__mlp_width=48))
    message = str(refused.value)
    assert "trunk/layers/mlp/gate: float32[2, 16, 24] -> float32[3, 16, 48]: grow or fresh" in message
    assert "embedding" not in message


def test_layers_and_widths_grow_and_the_rest_of_a_leaf_is_fresh(saved):
    old, fresh, params, notes = into(saved, tiny_config(model__layers=3, model__mlp_width=48), "trunk/*=grow")
    gate, before, new = (tree["trunk"]["layers"]["mlp"]["gate"] for tree in (params, old, fresh))
    np.testing.assert_array_equal(gate[:2, :, :24], before)
    np.testing.assert_array_equal(gate[2], new[2])
    np.testing.assert_array_equal(gate[:2, :, 24:], new[:2, :, 24:])
    assert any(note.endswith(", grow") for note in notes)


def test_a_larger_vocabulary_keeps_the_meaning_of_every_token(saved):
    larger = tiny_config(model__vocabulary=23)
    assert larger.model.padded_vocabulary == OLD.model.padded_vocabulary
    with pytest.raises(CheckpointError, match="embedding"):
        into(saved, larger)  # the same shape, and other special tokens
    old, fresh, params, _ = into(saved, larger, "embedding=grow", "text_head=grow")
    table, before, new = (np.asarray(tree["embedding"]) for tree in (params, old, fresh))
    np.testing.assert_array_equal(table[:20], before[:20])
    np.testing.assert_array_equal(table[20:23], new[20:23])
    np.testing.assert_array_equal(table[23 : 23 + SPECIAL_TOKENS], before[20 : 20 + SPECIAL_TOKENS])
    np.testing.assert_array_equal(params["text_head"][:, 23], old["text_head"][:, 20])


def test_marks_of_shapes_keep_their_meaning():
    """They stand behind the tokenizer's entries, the special ones and codes, and move with any of these."""
    shapes = dict(model__latent_shape=(2, 3, 1), model__max_side=4, model__shape_marks=True)
    changes = ({}, dict(model__vocabulary=23), dict(model__codebook=16))
    old, *others = (token_config(**shapes, **changed).model for changed in changes)
    table = np.arange(old.padded_vocabulary)[:, None]
    for new in others:
        assert new.padded_vocabulary == old.padded_vocabulary
        assert _tokens_moved(("vocabulary", "width"), old, new)
        grown = _grow("embedding", ("vocabulary", "width"), table, np.full_like(table, -1), old, new)
        np.testing.assert_array_equal(grown[new.first_side : new.entries], table[old.first_side : old.entries])
        codes_now, codes_then = grown[new.first_code :], table[old.first_code :]
        np.testing.assert_array_equal(codes_now[: old.codebook], codes_then[: old.codebook])
    without = token_config().model
    assert _tokens_moved(("vocabulary", "width"), without, old)  # its padding would become marks
    assert not _tokens_moved(("vocabulary", "width"), without, token_config(model__codebook=16).model)


def test_what_cannot_grow_starts_fresh(saved):
    other_patch = tiny_config(model__patch_size=4)
    with pytest.raises(CheckpointError, match="patch_coder/patch_in cannot grow along its axis 'patch'"):
        into(saved, other_patch, "patch_coder/*=grow")
    with pytest.raises(CheckpointError, match="cannot grow along its axis 'mlp' from 24 to 20"):
        into(saved, tiny_config(model__mlp_width=20), "*=grow")
    with pytest.raises(CheckpointError, match="cannot grow along its axis 'heads'"):
        into(saved, tiny_config(model__width=32), "*=grow")
    old, fresh, params, _ = into(saved, other_patch, "patch_coder/*=fresh")
    np.testing.assert_array_equal(params["patch_coder"]["patch_in"], fresh["patch_coder"]["patch_in"])
    np.testing.assert_array_equal(params["embedding"], old["embedding"])


def test_heads_grow_where_their_channels_and_groups_are_the_same():
    old = tiny_config(**GROUPED["llama 3"]).model  # 4 heads of 4 channels, 2 of keys
    axes, table = ("width", "heads"), np.arange(16 * 8).reshape(16, 8)
    for changes, grows in (
        (dict(model__heads=8, model__kv_heads=4, model__head_dim=4), True),
        (dict(model__heads=8, model__kv_heads=2, model__head_dim=8), False),
        (dict(model__heads=4, model__kv_heads=4, model__head_dim=4), False),
    ):
        new = tiny_config(**(GROUPED["llama 3"] | changes)).model
        assert new.key_width == 16
        if grows:
            grown = _grow("key", axes, table, np.full((16, 16), -1), old, new)
            np.testing.assert_array_equal(grown[:, :8], table)
        else:
            with pytest.raises(CheckpointError, match="key cannot grow along its axis 'heads' from 8 to 16"):
                _grow("key", axes, table, np.full((16, 16), -1), old, new)


@pytest.mark.parametrize(
    ("changes", "leaf", "why"),
    [
        (dict(model__heads=4), "trunk/layers/attention/query", "heads of 8 channels -> 4"),
        (
            dict(model__patch_size=1, model__latent_shape=(4, 4, 8)),
            "patch_coder/patch_in",
            "patches of 2×2 -> 1×1",
        ),
    ],
)
def test_what_lies_otherwise_in_a_leaf_of_the_same_shape_is_not_taken(saved, changes, leaf, why):
    other = tiny_config(**changes)
    with pytest.raises(CheckpointError) as refused:
        into(saved, other, "*=grow")
    lines = [line for line in str(refused.value).splitlines() if why in line]
    assert lines[0].endswith(f"({why}): fresh")
    assert any(line.strip().startswith(f"{leaf}: ") for line in lines)
    _, fresh, params, _ = into(saved, other, "*=fresh")
    for name in leaf.split("/"):
        fresh, params = fresh[name], params[name]
    np.testing.assert_array_equal(params, fresh)
    untied = tiny_config(model__modality_weights="untied", model__heads=4)
    with pytest.raises(CheckpointError, match=r"patches/attention/query: absent -> \S+ 16, 16\]: fresh\n"):
        into(saved, untied, "*=text")


def test_fields_that_have_no_shape_are_said():
    said = other_functions(OLD.model, tiny_config(model__rope_theta=5e5, model__norm="post").model)
    assert [line.partition("model.")[2] for line in said] == [
        "norm 'pre'; here it is 'post'",
        "rope_theta 10000.0; here it is 500000.0",
    ]
    assert not list(other_functions(OLD.model, tiny_config(optimizer__learning_rate=1.0).model))


def test_a_text_head_that_only_one_of_the_models_has_is_dropped_or_fresh(saved, tmp_path):
    tied = tiny_config(model__tied_embeddings=True)
    with pytest.raises(CheckpointError, match=r"text_head: float32\[16, 128\] -> absent: drop"):
        into(saved, tied)
    old, _, params, notes = into(saved, tied, "text_head=drop")
    np.testing.assert_array_equal(params["embedding"], old["embedding"])
    assert notes == ["text_head: float32[16, 128] -> absent, drop"]
    state = State(jnp.int32(3), params, {}, None, new_guard(GuardConfig()))
    with Checkpoints(tmp_path, about={"config": configs.to_dict(tied)}) as checkpoints:
        checkpoints.save(state, 0, None)
    with pytest.raises(CheckpointError, match=r"text_head: absent -> float32\[16, 128\]: fresh"):
        into((checkpoints, params), OLD)
    _, fresh, params, _ = into((checkpoints, params), OLD, "text_head=fresh")
    np.testing.assert_array_equal(params["text_head"], fresh["text_head"])


def test_an_old_leaf_without_a_place_is_dropped_by_name(saved, tmp_path):
    _, params = saved
    more = params | {"extra": jnp.ones(3)}
    state = State(jnp.int32(3), more, {}, None, new_guard(GuardConfig()))
    with Checkpoints(tmp_path, about={"config": configs.to_dict(OLD)}) as checkpoints:
        checkpoints.save(state, 0, None)
    with pytest.raises(CheckpointError, match=r"extra: float32\[3\] -> absent: drop"):
        into((checkpoints, params), OLD)
    _, _, kept, notes = into((checkpoints, params), OLD, "extra=drop")
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    assert notes == ["extra: float32[3] -> absent, drop"]


def test_a_pattern_that_fits_no_leaf_is_an_error(saved):
    with pytest.raises(ConfigError, match="--init-map embeding=grow fits no leaf"):
        into(saved, OLD, "embeding=grow")


@pytest.mark.parametrize(
    ("entry", "message"),
    [("embedding", "must be PATTERN=ACTION"), ("=grow", "must be"), ("x=grwo", "did you mean 'grow'")],
)
def test_a_mapping_that_cannot_be_read_is_an_error(entry, message):
    with pytest.raises(ConfigError, match=message):
        parse_mapping([entry])


def test_weights_of_patches_begin_as_those_of_text(saved):
    untied = tiny_config(model__modality_weights="untied")
    with pytest.raises(CheckpointError, match=r"trunk/layers/patches/mlp/gate: absent -> .*: fresh or text"):
        into(saved, untied)
    old, fresh, params, notes = into(
        saved, untied, "trunk/layers/patches/mlp/*=fresh", "trunk/layers/patches/*=text"
    )
    patches, text = params["trunk"]["layers"]["patches"], old["trunk"]["layers"]
    for part in ("attention", "attention_norm"):
        jax.tree.map(np.testing.assert_array_equal, patches[part], text[part])
    jax.tree.map(np.testing.assert_array_equal, patches["mlp"], fresh["trunk"]["layers"]["patches"]["mlp"])
    assert "trunk/layers/patches/attention/query: absent -> float32[2, 16, 16], text" in notes


def test_only_weights_with_a_twin_begin_as_those_of_text(saved):
    with pytest.raises(CheckpointError, match="fresh"):
        into(saved, tiny_config(model__layers=3), "trunk/*=text")
