import json
import math

import pytest

from transfusion_jax.training.metrics import duration, keep_until, open_writer, progress_line
from transfusion_jax.training.workdir import Workdir


def test_records_after_the_restored_step_and_a_torn_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3, 4)) + '{"step": 5, "lo')
    keep_until(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    with open_writer(Workdir(tmp_path), 0) as writer:
        writer.record(1, {"loss": 2.0, "empty": math.nan, "wild": math.inf})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m 0s"), (3725, "1h 2m"), (90061, "1d 1h"), (7, "7s")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_progress_tells_losses_speed_and_time_left():
    values = dict(loss_text=1.5, loss_image=0.25, grad_norm=1.0, elements_per_second=12345.6, mfu=0.41)
    line = progress_line(50, 1000, values, seconds_per_step=0.1)
    assert line == "step   50/1000  text 1.500  image 0.250  grad 1.00  12,346 elements/s  MFU 41%  1m 35s left"
