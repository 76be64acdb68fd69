import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import programs
from helpers import tiny_batch, tiny_config, with_images
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import axis_names
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.step.optimizer import is_matrix, learning_rate, make_optimizer
from transfusion_jax.training.step.state import RunContext


def test_training_lowers_the_loss_and_counts_steps():
    config = tiny_config(steps=60)
    state, step = fresh(config)
    batch = tiny_batch(config)
    _, reported = run(state, step, [batch] * 60)
    assert reported[-1]["loss_text"] < 0.6 * reported[0]["loss_text"]
    assert reported[-1]["loss_image"] < 0.9 * reported[0]["loss_image"]


def test_a_step_is_adamw_on_the_gradients():
    config = tiny_config(optimizer__warmup_steps=0, optimizer__gradient_clip=0.0, optimizer__ema_decay=0.0)
    task = TransfusionTask(config)
    state, step = fresh(config)
    params = jax.tree.map(np.asarray, state.params)
    batch = tiny_batch(config)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    gradients, _ = jax.device_get(jax.jit(lambda p: task.gradients(p, batch, key, 0))(state.params))
    rate = float(learning_rate(config.optimizer, config.steps)(0))
    stepped = jax.device_get(step(state, batch)[0].params)

    def expected(path, p, g):  # the first step's moments are the gradient and its square
        decay = config.optimizer.weight_decay if is_matrix(axis_names(task.axes(), path, p.ndim)) else 0.0
        return p - rate * (g / (np.abs(g) + config.optimizer.epsilon) + decay * p)

    wanted = jax.tree_util.tree_map_with_path(expected, params, gradients)
    large = jax.tree.map(lambda g: np.abs(g) > 1e-5, gradients)  # below, rounding decides the sign
    jax.tree.map(
        lambda a, b, m: np.testing.assert_allclose(a[m], b[m], rtol=1e-3, atol=1e-5), stepped, wanted, large
    )


def test_only_matrices_decay():
    still = [name for name, axes in TransfusionTask(tiny_config()).axes().items() if not is_matrix(axes)]
    assert all(name.endswith(("scale", "bias")) for name in still)
    assert len(still) == 3 + 4  # norms of the trunk, biases of the patch coder


def test_a_frozen_part_does_not_move():
    config = tiny_config()
    task = TransfusionTask(config)
    params = task.init(jax.random.key(0))
    optimizer = make_optimizer(
        config.optimizer, lambda path: "frozen" if path[0].key == "trunk" else "adamw", params, task.axes()
    )
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates["trunk"]))
    assert np.all(updates["embedding"] != 0)


def test_learning_rate_warms_up_and_falls_to_the_final_rate():
    config = tiny_config(
        optimizer__learning_rate=1.0, optimizer__final_learning_rate=0.1, optimizer__warmup_steps=10
    )
    rate = learning_rate(config.optimizer, 110)
    np.testing.assert_allclose([rate(i) for i in (0, 4, 9)], [0.1, 0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(rate(59), 0.55, rtol=1e-6)  # half-way down the cosine
    np.testing.assert_allclose(rate(109), 0.1, rtol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_but_its_number():
    config = tiny_config()
    state, step = fresh(config)
    state, _ = step(state, tiny_batch(config))
    before = jax.tree.map(np.asarray, state)
    poisoned = tiny_batch(config, first_row=4)
    poisoned.media["images"].patches[0, 0, 0] = np.nan
    state, report = step(state, poisoned)
    assert report.values["skipped_steps"] == 1
    assert state.step == before.step + 1
    for part in ("params", "optimizer", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(before, part))


def test_what_nothing_bears_is_absent_and_not_zero():
    """No image in one batch, no loss at all in the other: NaN is what the log leaves out."""
    config = tiny_config()
    state, step = fresh(config)
    batch = tiny_batch(config)
    without = with_images(batch, weight=0 * batch.media["images"].weight)
    silent = dataclasses.replace(without, token_weight=0 * batch.token_weight)
    (texts, nothing) = run(state, step, [without, silent])[1]
    present = {name for name, value in texts.items() if np.isfinite(value)}
    assert {"loss", "loss_text", "loss_text/source_pairs", "loss_text/source_texts"} <= present
    assert not [name for name in present if name.startswith("loss_image")]
    assert not [name for name, value in nothing.items() if name.startswith("loss") and np.isfinite(value)]
    assert nothing["skipped_steps"] == 0


def test_the_average_follows_the_parameters_at_its_rate():
    config = tiny_config(optimizer__ema_decay=0.5)
    state, step = fresh(config)
    state = dataclasses.replace(state, step=jnp.int32(100))  # past the young average's faster start
    before = jax.tree.map(np.asarray, state.ema)
    state, _ = step(state, tiny_batch(config))
    jax.tree.map(
        lambda e, b, p: np.testing.assert_allclose(e, 0.5 * b + 0.5 * p, rtol=1e-5, atol=1e-7),
        state.ema,
        before,
        state.params,
    )


def test_the_state_is_sharded_as_the_table_says():
    state, step = fresh(tiny_config(batch_rows=8, mesh=dict(fsdp=4, data=2)), 8)
    state, _ = step(state, tiny_batch(tiny_config(batch_rows=8)))
    queries = [leaf for path, leaf in jax.tree.leaves_with_path(state) if "query" in jax.tree_util.keystr(path)]
    assert len(queries) == 4  # the parameter, two moments, the average
    for leaf in queries:
        assert leaf.addressable_shards[0].data.shape == (2, 4, 16)  # width 16 over fsdp 4


@pytest.mark.parametrize(
    "changes",
    [
        dict(mesh=dict(data=2, context=2, tensor=2)),
        pytest.param(dict(mesh=dict(fsdp=4, data=2)), marks=pytest.mark.slow),
        pytest.param(dict(mesh=dict(fsdp=2, context=4, data=1)), marks=pytest.mark.slow),
        pytest.param(dict(mesh=dict(fsdp=2, tensor=2, data=2), accumulation=2), marks=pytest.mark.slow),
        pytest.param(dict(mesh=dict(context=8, data=1), model__remat="full"), marks=pytest.mark.slow),
        pytest.param(dict(mesh=dict(fsdp=8, data=1), model__remat="dots"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_mesh_takes_the_steps_of_one_device(changes):
    results = []
    for config, devices in ((tiny_config(batch_rows=8), 1), (tiny_config(batch_rows=8, **changes), 8)):
        state, step = fresh(config, devices)
        results.append(run(state, step, [tiny_batch(config, first_row=8 * i) for i in range(3)])[1])
    for a, b in zip(*results, strict=True):
        for name in ("loss_text", "loss_image", "grad_norm"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3)


def test_first_moments_in_bfloat16_take_half_the_bytes_and_train():
    wide, narrow = (tiny_config(steps=60, optimizer__first_moment=kind) for kind in ("float32", "bfloat16"))
    states = [fresh(config)[0] for config in (wide, narrow)]
    moments, halves = (jax.tree.leaves(state.optimizer) for state in states)
    assert sum(leaf.dtype == jnp.bfloat16 for leaf in halves) == len(jax.tree.leaves(states[0].params))
    assert sum(leaf.nbytes for leaf in halves) < 0.76 * sum(leaf.nbytes for leaf in moments)
    state, step = fresh(narrow)
    _, reported = run(state, step, [tiny_batch(narrow)] * 60)
    assert reported[-1]["loss_text"] < 0.6 * reported[0]["loss_text"]


def fresh(config, devices=1):
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    task = TransfusionTask(config)
    return programs.begun(RunContext(task, config, mesh))


def run(state, step, batches):
    history = []
    for batch in batches:
        state, report = step(state, batch)
        history.append(jax.device_get(report.values))
    return state, history
