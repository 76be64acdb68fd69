"""Learning rates step by step, beside their formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion_jax.config import OptimizerConfig
from transfusion_jax.training.step.optimizer import learning_rate

PEAK, FINAL = 3e-4, 1.5e-5


def rates(schedule, warmup, steps, beyond=3):
    """Those of all steps of a run, and of some after its end."""
    config = OptimizerConfig(learning_rate=PEAK, final_learning_rate=FINAL, warmup_steps=warmup, schedule=schedule)
    return jax.jit(jax.vmap(learning_rate(config, steps)))(jnp.arange(steps + beyond))


@pytest.mark.parametrize(
    ("warmup", "steps"), [(0, 7), (1, 7), (3, 10), (100, 2400), (4000, 250_000), (7, 7), (4000, 20), (1, 1)]
)
def test_cosine_rises_evenly_to_the_peak_and_falls_to_the_final_rate_at_the_last_step(warmup, steps):
    rise = min(warmup, steps)

    def rate(step):  # from 1
        if step < rise:
            return PEAK * step / rise
        progress = min((step - rise) / max(steps - rise, 1), 1)
        return FINAL + (PEAK - FINAL) * (1 + math.cos(math.pi * progress)) / 2

    expected = [rate(step) for step in range(1, steps + 1)]
    np.testing.assert_allclose(rates("cosine", warmup, steps, beyond=0), expected, rtol=1e-6)


def test_cosine_stays_at_the_final_rate_after_the_last_step():
    np.testing.assert_allclose(rates("cosine", 3, 10)[-4:], FINAL, rtol=1e-6)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 7), (3, 10), (4000, 20)])
def test_constant_rises_evenly_to_the_peak_and_stays_there(warmup, steps):
    rise = min(warmup, steps)
    expected = [PEAK * min(step / max(rise, 1), 1) for step in range(1, steps + 4)]
    np.testing.assert_allclose(rates("constant", warmup, steps), expected, rtol=1e-6)
