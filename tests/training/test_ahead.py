"""The host runs ahead of the device, one program serves all steps, and the state's memory is used again."""

import dataclasses

import jax
import jax.numpy as jnp

from helpers import tiny_batch, tiny_config, tiny_run
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training import loop
from transfusion_jax.training.step.state import RunContext, create_state
from transfusion_jax.training.step.step import make_step


def test_the_next_batch_is_on_the_device_while_a_step_computes(tmp_path, monkeypatch):
    """Steps take so long here that one which has ended when the next batch is there was waited for."""
    config = tiny_config(steps=7, loop=dict(log_every=7, save_every=7, evaluate_every=0))
    gradients, to_global, make = TransfusionTask.gradients, loop.to_global, loop.make_step
    reports, busy = [], []

    def long(task, params, batch, key, step):  # no callback: with one, JAX runs a program on CPU while it is called
        grads, metrics = gradients(task, params, batch, key, step)
        x = jax.lax.fori_loop(0, 400, lambda _, x: jnp.tanh(x @ x), jnp.full((256, 256), 0.01 + metrics.loss))
        return grads, dataclasses.replace(metrics, loss=metrics.loss + jnp.isnan(x[0, 0]))

    def send(batch, sharding):
        placed = jax.block_until_ready(to_global(batch, sharding))
        if len(reports) > 1:  # the loop waits for the first step, to say how long it took
            busy.append(not reports[-1].verdict.is_ready())
        return placed

    def watched(*arguments):
        step = make(*arguments)

        def run(*arguments):
            state, report = step(*arguments)
            reports.append(report)
            return state, report

        run.bytes_used = step.bytes_used
        return run

    monkeypatch.setattr(TransfusionTask, "gradients", long)
    monkeypatch.setattr(loop, "to_global", send)
    monkeypatch.setattr(loop, "make_step", watched)
    tiny_run(tmp_path, config)
    assert len(busy) == 5
    assert any(busy)  # not all: the host may be held up for other reasons


def test_steps_share_one_program_that_writes_the_state_into_its_old_memory(monkeypatch):
    config, compiled = tiny_config(), []
    jit = jax.jit
    monkeypatch.setattr(jax, "jit", lambda *args, **options: compiled.append(jit(*args, **options)) or compiled[-1])
    mesh, task = make_mesh(config.mesh, jax.devices()[:1]), TransfusionTask(config)
    context = RunContext(task, config, mesh)
    step = make_step(context)
    (program,) = compiled
    monkeypatch.undo()
    state = create_state(context)
    for number in range(3):
        before = jax.tree.leaves(state)
        batch = loop.to_global(tiny_batch(config, first_row=4 * number), loop.batch_sharding(mesh))
        state, _ = step(state, batch)
        assert all(leaf.is_deleted() for leaf in before)
    assert program._cache_size() == 1
    with jax.set_mesh(mesh):
        lowered = program.lower(context.abstract_state, batch, jax.ShapeDtypeStruct((1,), bool))
        memory = lowered.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(state))
