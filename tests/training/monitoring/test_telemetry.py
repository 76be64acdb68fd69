import json
from dataclasses import replace

import pytest

from helpers import tiny_config, tiny_run
from transfusion_jax.errors import TrainingHalted
from transfusion_jax.storage.jsonl import read_lines
from transfusion_jax.training.loop import Hook
from transfusion_jax.training.monitoring import goodput
from transfusion_jax.training.monitoring.profiler import StepRange
from transfusion_jax.training.monitoring.telemetry import Watching
from transfusion_jax.training.monitoring.watchdog import Beat
from transfusion_jax.training.run_dir import Workdir


def test_a_run_accounts_for_all_of_its_time_over_its_attempts(tmp_path):
    config = tiny_config(loop__log_every=2, loop__save_every=4, loop__evaluate_every=0)
    tiny_run(tmp_path, config, hooks=(Hook(4, lambda *_: {}),))
    workdir = Workdir(tmp_path)
    (first,) = goodput.read_attempts(workdir.attempts)
    assert (first.number, first.first_step, first.step, first.ended) == (1, 0, 8, goodput.DONE)
    assert first.updated == pytest.approx(first.last_heard, abs=0.5)
    assert min(first.seconds[kind] for kind in ("start", "compile", "step", "checkpoint", "evaluation")) > 0

    (workdir.checkpoints / "8").rename(tmp_path / "gone")  # as if it had been killed before this one was whole
    goodput.write_attempt(workdir.attempts, replace(first, ended=None))
    tiny_run(tmp_path, config)
    _, second = goodput.read_attempts(workdir.attempts)
    assert (second.first_step, second.step) == (4, 8)
    records = read_lines(workdir.metrics)
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    assert (records[-1]["lost_steps"], records[-1]["restarts"]) == (4, 1)
    for record in records:
        assert sum(value for name, value in record.items() if name.startswith("goodput")) == pytest.approx(1)
        assert record["seconds_per_step_longest"] >= 0
        assert record["memory/host_gib"] > 0
        assert not any(name.startswith("host/") for name in record)  # one process has nobody to wait for
    said = (tmp_path / "said").read_text()
    assert "attempt 2: the one before was killed" in said
    assert "in 2 attempts, with 4 steps made again" in said
    assert "memory: the process holds" in said


def test_what_ended_an_attempt_is_kept(tmp_path):
    def refuse(*_):
        raise TrainingHalted("enough")

    with pytest.raises(TrainingHalted):
        tiny_run(tmp_path, tiny_config(), hooks=(Hook(4, refuse),))
    (attempt,) = goodput.read_attempts(tmp_path / "attempts")
    assert (attempt.ended, attempt.doing) == ("TrainingHalted: enough", "ended")


def test_while_it_evaluates_it_says_so(tmp_path):
    seen, beat = [], Beat()

    def look(*_):
        seen.append((json.loads((tmp_path / "attempts/00001.json").read_text())["doing"], beat.doing, beat.step))
        return {}

    tiny_run(tmp_path, tiny_config(), hooks=(Hook(4, look),), beat=beat)
    assert seen == [("evaluating", "evaluating", 4), ("evaluating", "evaluating", 8)]
    assert (beat.doing, beat.step) == ("ended", 8)
    assert beat.pace > 0


def test_a_trace_is_of_the_steps_asked_for(tmp_path):
    tiny_run(tmp_path, tiny_config(loop__save_every=4), watching=Watching(profile=StepRange(5, 7)))
    (trace,) = (tmp_path / "profile/plugins/profile").glob("*/*.xplane.pb")
    assert b"train" in trace.read_bytes()
    said = (tmp_path / "said").read_text()
    assert "steps 5 to 6 traced into" in said
    assert "xprof --logdir" in said


def test_steps_that_are_over_are_not_traced(tmp_path):
    tiny_run(tmp_path, tiny_config(loop__save_every=4))
    (tmp_path / "checkpoints/8").rename(tmp_path / "gone")
    tiny_run(tmp_path, tiny_config(loop__save_every=4), watching=Watching(profile=StepRange(3, 7)))
    assert "no trace of steps 3 to 6: the run resumes after step 4" in (tmp_path / "said").read_text()
    assert not (tmp_path / "profile").exists()
