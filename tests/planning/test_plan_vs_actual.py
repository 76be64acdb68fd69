import re

from helpers import tiny_config, tiny_run
from transfusion_jax.planning import plan_vs_actual
from transfusion_jax.planning.plan_vs_actual import Beside


def test_a_run_says_what_was_planned_beside_what_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_vs_actual, "SMALL", 0)
    config = tiny_config(steps=55, loop=dict(log_every=5, save_every=55, evaluate_every=0))
    tiny_run(tmp_path / "run", config)
    said = (tmp_path / "run/said").read_text()
    (memory,) = re.findall(r"plan   per device ([\d,]+) MiB by formulas, ([\d,]+) measured", said)
    assert all(int(size.replace(",", "")) > 0 for size in memory)
    (step,) = re.findall(r"step at least (\S+) s, (\S+) measured .*MFU at most (\S+)%, (\S+)% measured", said)
    least, measured, most, reached = map(float, step)
    assert 0 < least < measured
    assert 0 < reached < most <= 100
    assert said.index("step 50/55") < said.index("plan   per device") < said.index("step 55/55")


def test_a_tiny_run_is_not_compared():
    """Formulas count arrays alone: of a step that takes a few MiB they are several times off."""
    tiny, large = (Beside((size * 2**20, size * 2**20), (0.1, 0.2), (0.5, 0.25)) for size in (12, 1200))
    assert tiny.lines() == []
    assert large.lines()[0] == "plan   per device 1,200 MiB by formulas, 1,200 measured (+0%)"
