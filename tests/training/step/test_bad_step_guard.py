import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion_jax.config import GuardConfig
from transfusion_jax.training.step.bad_step_guard import FINE, NOT_FINITE, SPIKE, halted, judge_step, new_guard

NAN, INF = float("nan"), float("inf")


def run(config, steps):
    """The verdicts on (loss, norm) pairs, the guard after them, and after which step it halted."""
    guard, verdicts, stopped = new_guard(config), [], None
    judged = jax.jit(lambda guard, loss, norm: judge_step(config, guard, loss, norm))
    for number, (loss, norm) in enumerate(steps):
        verdict, guard = judged(guard, jnp.float32(loss), jnp.float32(norm))
        verdicts.append(int(verdict))
        if stopped is None and halted(config, guard):
            stopped = number
    return verdicts, guard, stopped


@pytest.mark.parametrize("bad", [(NAN, 1), (1, NAN), (INF, 1), (1, INF), (-INF, 1)])
def test_what_is_not_finite_is_bad_and_counted(bad):
    verdicts, guard, stopped = run(GuardConfig(), [(1, 1), bad, bad, (1, 1), bad])
    assert verdicts == [FINE, NOT_FINITE, NOT_FINITE, FINE, NOT_FINITE]
    assert (guard.in_a_row, guard.skipped, guard.seen) == (1, 3, 2)
    assert stopped is None


def test_so_many_in_a_row_halt_and_a_good_step_between_does_not():
    config = GuardConfig(max_in_a_row=3)
    bad, good = (NAN, 1), (1, 1)
    assert run(config, [bad, bad, good, bad, bad, good])[2] is None
    assert run(config, [good, bad, bad, bad])[2] == 3


def test_a_spike_is_judged_by_the_last_accepted_steps():
    config = GuardConfig(spikes="skip", spike_window=4, spike_sigmas=3)
    usual = [(1.0, 2.0), (1.2, 2.1), (0.9, 1.9), (1.1, 2.2)]
    array = np.array(usual)
    limit = array.mean(0) + 3 * array.std(0)
    below, above = limit - 0.01, limit + 0.01
    assert run(config, [*usual, below])[0][-1] == FINE
    assert run(config, [*usual, (above[0], 2)])[0][-1] == SPIKE
    assert run(config, [*usual, (1, above[1])])[0][-1] == SPIKE
    verdicts, guard, _ = run(config, [*usual, (9, 9), (1, 2), (9, 9)])
    assert verdicts[4:] == [SPIKE, FINE, SPIKE]  # a spike does not widen the window
    np.testing.assert_allclose(np.sort(guard.recent[:, 0]), [0.9, 1, 1.1, 1.2], rtol=1e-6)


def test_no_spike_is_judged_before_the_window_is_full_or_where_they_are_ignored():
    usual = [(1.0, 1.0)] * 3
    assert run(GuardConfig(spikes="skip", spike_window=4), [*usual, (9, 9)])[0] == [FINE] * 4
    assert run(GuardConfig(spikes="ignore", spike_window=2), [*usual, (9, 9)])[0] == [FINE] * 4


def test_a_fall_is_no_spike():
    config = GuardConfig(spikes="skip", spike_window=3)
    assert run(config, [(3.0, 3.0), (3.1, 3.0), (2.9, 3.0), (0.1, 0.1)])[0][-1] == FINE


def test_the_first_spike_halts_where_the_config_says_stop():
    config = GuardConfig(spikes="stop", spike_window=2)
    verdicts, _, stopped = run(config, [(1, 1), (1.1, 1), (50, 1)])
    assert verdicts[-1] == SPIKE
    assert stopped == 2
    assert run(config, [(1, 1), (1.1, 1), (NAN, 1)])[2] is None
