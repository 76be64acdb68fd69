import re

from helpers import tiny_config, tiny_run


def test_a_run_says_what_was_planned_beside_what_it_measures(tmp_path):
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
