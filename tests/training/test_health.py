import json
import shutil
import sys
import time
from collections import namedtuple
from dataclasses import replace

import pytest

from helpers import tiny_config, tiny_run
from transfusion_jax.cli import main
from transfusion_jax.training import goodput
from transfusion_jax.training.goodput import DONE, SIGNAL
from transfusion_jax.training.health import examine, lines
from transfusion_jax.training.workdir import DAMAGED, Workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    tiny_run(path, tiny_config(loop__log_every=2, loop__save_every=4))
    return path


@pytest.fixture
def run(finished, tmp_path):
    """A finished run, and a function that gives it attempts that went otherwise."""
    shutil.copytree(finished, tmp_path / "run")
    workdir = Workdir(tmp_path / "run")
    (attempt,) = goodput.read_attempts(workdir.attempts)

    def had(*changes):
        for number, change in enumerate(changes, 1):
            seconds = attempt.seconds | change.pop("seconds", {})
            about = attempt.about | change.pop("about", {})
            other = replace(attempt, number=number, seconds=seconds, about=about, **change)
            goodput.write_attempt(workdir.attempts, other)
        return workdir

    return had


def test_a_finished_run_wants_nothing(run, capsys):
    workdir = run(dict())
    assert main(["doctor", str(workdir.path)]) == 0
    said = capsys.readouterr().out
    assert "finished the run at step 8" in said
    assert "step 8 of 8\n" in said
    assert "last save: step 8, " in said
    assert "nothing is wrong" in said


def test_a_killed_run_is_to_be_started_again(run, capsys):
    workdir = run(dict(ended=None, doing="training", step=7))
    assert main(["doctor", str(workdir.path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["wrong"] == ["nobody trains here; the same command goes on from step 8"]
    assert (report["step"], report["steps"]) == (7, 8)
    assert report["seconds_left"] > 0
    assert report["checkpoint"]["bytes"] > 0


@pytest.mark.parametrize(
    ("ended", "remedy"),
    [
        (SIGNAL, "nobody trains here; the same command goes on"),
        ("TrainingHalted: 5 in a row", "its steps went bad (bad_steps.jsonl)"),
        ("StorageError: no space", "make room, or mend the storage: then the same command"),
        ("ValueError: odd", "mend what ended it (ValueError: odd): then the same command"),
    ],
)
def test_how_it_ended_says_what_to_do(run, ended, remedy):
    (wrong,) = examine(run(dict(ended=ended)))["wrong"]
    assert remedy in wrong


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone says who holds a lock")
def test_a_run_that_trains_is_told_from_one_that_hangs(run):
    workdir = run(dict(ended=None, doing="training", step=6, updated=time.time()))
    with workdir.locked():
        report = examine(workdir)
        assert (report["state"], report["wrong"]) == ("training", [])
        (wrong,) = examine(workdir, time.time() + 3600)["wrong"]
        assert "while training: it hangs, or its machine is gone" in wrong
        run(dict(ended=None, doing="evaluating", updated=time.time()))
        assert examine(workdir, time.time() + 600)["wrong"] == []  # that may take long
        run(dict(ended=SIGNAL))
        assert examine(workdir)["state"] == "starting again"
    with workdir.locked():  # looking at the lock has not taken it
        pass


def test_a_run_on_another_machine_is_judged_by_what_it_wrote(run):
    workdir = run(dict(ended=None, doing="training", updated=time.time(), about={"hosts": ["elsewhere"]}))
    assert examine(workdir)["state"] == "training"
    report = examine(workdir, time.time() + 3600)
    assert report["state"] == "silent; it was training"
    assert "nothing was heard for 1h 0m" in report["wrong"][0]


def test_attempts_that_never_reach_a_save_are_noticed(run):
    report = examine(run(*3 * (dict(ended=None, first_step=4, step=6),)))
    assert any("the last three attempts all began at step 4" in line for line in report["wrong"])
    assert len(report["restarts"]) == 2
    assert report["lost_steps"] == 4
    assert "attempt 2 began" in "\n".join(lines(report))


def test_a_full_disk_is_seen_before_it_ends_the_run(run, monkeypatch):
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    (wrong,) = examine(run(dict(ended=DONE)))["wrong"]
    assert "1.0 KiB are free, and a checkpoint takes" in wrong


def test_what_takes_the_time_is_advised_against(run):
    slow = "process 3 (b) keeps the others waiting: 0.5 s of each step's 1.0 s, 0.5 s of it for data"
    memory = {"peak_gib": 15.9, "in_use_gib": 9.0, "limit_gib": 16.0}
    times = dict(seconds=dict(step=100, data_wait=100, checkpoint=100, evaluation=100))
    report = examine(run(times | dict(about={"slow": slow, "memory": memory})))
    for word in (
        "raise data.workers, which is 0",
        "raise loop.save_every, 4",
        "raise loop.evaluate_every",
        "nearly",
    ):
        assert any(word in line for line in report["advice"]), word
    assert f"{slow}: look at that machine, or leave it out" in report["advice"]
    assert "memory per device: 15.9 of 16.0 GiB at most" in "\n".join(lines(report))
    assert examine(run(dict(seconds=dict(step=400, data_wait=0, checkpoint=0, evaluation=0))))["advice"] == []


def test_bad_steps_and_damaged_checkpoints_are_told(run):
    workdir = run(dict())
    bad = dict(step=5, verdict="not finite", loss="nan", grad_norm="nan", rows=[21], batch=[20, 24], leaves=[])
    workdir.bad_steps.write_text(json.dumps(bad | {"in_a_row": 1}) + "\n")
    workdir.remember(DAMAGED, step=4, reason="wrong checksum", moved_to="aside/4-1")
    said = "\n".join(lines(examine(workdir)))
    assert "step 5 skipped, not finite" in said
    assert "checkpoint 4 was damaged (wrong checksum) and is in aside/4-1" in said


def test_a_run_that_never_trained_says_so(run):
    workdir = run()
    shutil.rmtree(workdir.attempts)
    shutil.rmtree(workdir.checkpoints)
    report = examine(workdir)
    assert report["state"] == "begun, and never trained"
    assert "nothing is saved yet" in "\n".join(lines(report))


@pytest.mark.parametrize("option", [["--verify"], ["--output", "a.png"], ["--row", "3"]])
def test_options_of_data_are_refused_for_a_run(run, capsys, option):
    assert main(["doctor", str(run(dict()).path), *option]) == 2
    assert "transfusion: " in capsys.readouterr().err
