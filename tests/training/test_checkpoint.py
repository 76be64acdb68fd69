import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion_jax.config import GuardConfig
from transfusion_jax.errors import CheckpointError
from transfusion_jax.training.checkpoint import Checkpoints, to_devices
from transfusion_jax.training.guard import new_guard
from transfusion_jax.training.state import State


def test_state_and_row_come_back_and_the_weights_alone_too(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3), next_row=24, metrics=None)
    with Checkpoints(tmp_path) as checkpoints:
        restored, manifest = checkpoints.restore(3, to_devices(state(0)))
        assert manifest["next_row"] == 24
        jax.tree.map(np.testing.assert_array_equal, restored, state(3))
        for which, scale in (("params", 1), ("ema", 2)):
            weights = checkpoints.weights(3, which, to_devices(state(0).params))
            np.testing.assert_array_equal(weights["w"], np.full((2, 3), 3 * scale))


def test_a_run_without_an_average_comes_back_without_one(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3, ema=False), next_row=24, metrics=None)
        checkpoints.wait()
        assert checkpoints.restore(3, to_devices(state(0, ema=False)))[0].ema is None


def test_the_newest_and_the_best_stay(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, loss in enumerate([5.0, 1.0, 3.0, None, 2.0, None], 1):
            checkpoints.save(state(step), step, {"loss": loss} if loss else None)
            checkpoints.wait()
        assert checkpoints.steps == [2, 5, 6]
        assert (checkpoints.find("latest"), checkpoints.find("best"), checkpoints.find("5")) == (6, 2, 5)


def test_what_is_not_there_is_said(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            checkpoints.find("latest")
        checkpoints.save(state(4), 1, None)
        checkpoints.wait()
        with pytest.raises(CheckpointError, match="no checkpoint 9: there are 4, latest and best"):
            checkpoints.find("9")
        with pytest.raises(CheckpointError, match="no checkpoint was evaluated"):
            checkpoints.find("best")


def state(step, ema=True):
    params = {"w": jnp.full((2, 3), float(step))}
    average = {"w": 2 * params["w"]} if ema else None
    return State(jnp.int32(step), params, {"mu": params}, average, new_guard(GuardConfig()))
