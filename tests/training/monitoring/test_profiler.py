import jax.numpy as jnp
import pytest

from transfusion_jax.config import ConfigError
from transfusion_jax.training.monitoring.profiler import StepRange, parse_steps, traced


def test_a_range_ends_before_its_end():
    steps = parse_steps("10:15", last=20)
    assert [step for step in range(20) if step in steps] == [10, 11, 12, 13, 14]
    assert (str(steps), str(StepRange(3, 4))) == ("steps 10 to 14", "step 3")
    assert parse_steps("20:21", last=20) == StepRange(20, 21)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "must be A:B, such as 10:15, which is steps 10 to 14"),
        ("a:b", "must be A:B"),
        ("5:5", "holds no step"),
        ("7:5", "holds no step"),
        ("0:5", "the first step is 1"),
        ("15:22", "the run has 20 steps, so 21 is the largest end"),
    ],
)
def test_what_is_no_range_of_the_run_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_steps(text, last=20)


def test_a_trace_is_put_where_xprof_looks(tmp_path):
    with traced(tmp_path / "profile"):
        jnp.ones(3).sum().block_until_ready()
    assert list((tmp_path / "profile/plugins/profile").glob("*/*.xplane.pb"))
