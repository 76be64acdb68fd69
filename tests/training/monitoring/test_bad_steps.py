import jax
import numpy as np

import programs
from helpers import tiny_batch, tiny_config
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.tree import leaf_names
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.monitoring import bad_steps
from transfusion_jax.training.step.state import RunContext


def bad_step(config, spoil, warm=0):
    """The diagnosis of a step on a spoilt batch, after some good ones."""
    mesh, task = make_mesh(config.mesh, jax.devices()[:1]), TransfusionTask(config)
    state, step = programs.begun(RunContext(task, config, mesh))
    for number in range(warm):
        state, _ = step(state, tiny_batch(config, first_row=4 * number))
    batch = tiny_batch(config, first_row=100)
    spoil(batch)
    leaves = leaf_names(state.params)
    _, report = step(state, batch)
    return bad_steps.diagnose(26, report, leaves), leaves


def test_a_row_that_is_not_finite_is_named_with_every_gradient_that_it_reaches():
    def spoil(batch):
        batch.media["images"].patches[2, 0, 0] = np.nan

    for accumulation in (1, 2):
        bad, leaves = bad_step(tiny_config(accumulation=accumulation), spoil)
        assert bad["rows"] == [102]
        assert bad["batch"] == [100, 104]
        assert bad["verdict"] == "not finite"
        assert set(bad["leaves"]) <= set(leaves)
        assert "patch_coder/patch_in" in bad["leaves"]
        text = bad_steps.describe_bad_step(bad)
        assert text.startswith("step 26 skipped, not finite: loss nan (row 102), gradient norm nan (gradient of ")
        assert text.endswith("more); 1 in a row")


def test_a_spike_is_laid_to_the_row_whose_loss_is_farthest_from_the_others():
    def spoil(batch):
        batch.token_weight[1, ::2] *= 1000
        batch.token_weight[1, 1::2] *= -1000

    bad, _ = bad_step(tiny_config(guard=dict(spikes="skip", spike_window=4)), spoil, warm=4)
    assert (bad["verdict"], bad["rows"], len(bad["leaves"])) == ("spike", [101], 1)


def test_where_no_row_is_to_blame_the_batch_is_named():
    bad = dict(step=7, verdict="not finite", loss="2.5", grad_norm="inf", rows=[], batch=[24, 28], leaves=["a"])
    assert "loss 2.5 (no row's own loss, of rows 24 to 27)" in bad_steps.describe_bad_step(bad | {"in_a_row": 2})


def test_the_verdict_on_a_run_tells_how_to_go_on_from_before_the_last_bad_stretch():
    bad = [
        dict(step=step, verdict="not finite", rows=rows, batch=[4 * step - 4, 4 * step])
        for step, rows in [(2, [7]), (7, []), (8, [29]), (9, [32, 34])]
    ]
    text = bad_steps.verdict_on_run(bad, [4, 6, 8])
    assert "stopped itself at step 9: steps 7 to 9 were bad (not finite)" in text
    assert "tries again from step 8, --rewind-to 6 --skip-rows 24:35 leaves" in text
    assert "at step 2: step 2 was bad" in bad_steps.verdict_on_run(bad[:1], [])
    assert "--rewind-to" not in bad_steps.verdict_on_run(bad[:1], [4])  # nothing from before is left
