import json
import shutil
import sys
from collections import namedtuple
from dataclasses import asdict, replace

import pytest

from helpers import begin_tiny, tiny_config, tiny_run
from transfusion_jax.cli import main
from transfusion_jax.storage.lock import this_process
from transfusion_jax.training.monitoring import goodput
from transfusion_jax.training.monitoring.goodput import DONE, SIGNAL
from transfusion_jax.training.monitoring.heartbeat import Heartbeat
from transfusion_jax.training.monitoring.status import examine, report_lines
from transfusion_jax.training.monitoring.telemetry import DOING
from transfusion_jax.training.run_dir import DAMAGED, Workdir

NOW = 1e9  # seconds since the epoch


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


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was begun, and has logged nothing."""
    workdir = Workdir(tmp_path_factory.mktemp("begun"))
    begin_tiny(workdir, "start")
    return workdir


def test_a_finished_run_wants_nothing(run, capsys):
    workdir = run(dict())
    assert main(["doctor", str(workdir.path)]) == 0
    said = capsys.readouterr().out
    assert "finished at step 8" in said
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


HERE, GONE, ELSEWHERE = "this machine", "this machine, and is no more", "another machine"
PROCESSES = {
    HERE: this_process(),
    GONE: this_process() | {"began": "before"},
    ELSEWHERE: this_process() | {"machine": "another", "host": "elsewhere"},
}


def beaten(workdir, where, written=0.0, **said):
    """A heartbeat that was written so many seconds ago."""
    about = dict(doing="training", since=NOW - 3600, progress=NOW - written, step=6, pace=0.5, patience=1800.0)
    heart = Heartbeat(process=PROCESSES[where], every=5.0, written=NOW - written, **about | said)
    workdir.heartbeat.write_text(json.dumps(asdict(heart)))
    return workdir


@pytest.mark.parametrize("where", PROCESSES)
@pytest.mark.parametrize("doing", ["starting", *DOING.values()])
@pytest.mark.parametrize("silence", [0, 299, 301, 1801])  # seconds without a heartbeat
@pytest.mark.parametrize("idle", [0, 61, 1799, 1801])  # seconds in which the main thread had not gone on then
def test_a_run_is_called_hung_when_it_takes_longer_than_it_says_itself(begun, where, doing, silence, idle):
    """Whatever it does: before its first log line, while it compiles, and when steps are slow."""
    workdir = beaten(begun, where, silence, doing=doing, progress=NOW - silence - idle, pace=None, step=0)
    report = examine(workdir, NOW)
    (wrong,) = report["wrong"] or [""]
    if where == GONE:
        assert wrong == "nobody trains here; the same command goes on from step 0"
    elif where == ELSEWHERE and silence > 300:
        assert "its machine is gone, or cannot write here. Make sure that none of its processes is left" in wrong
        assert report["state"] == f"silent; it was {doing}"
    elif silence + idle > 1800:
        assert f"{doing}, without progress for" in wrong
        assert "longer than the 30m 0s of loop.hang_after: it hangs. End its processes" in wrong
    else:
        assert wrong == ""
        assert report["state"] == f"{doing} for 1h 0m"
        assert report["seconds_left"] is None  # rather than none
        assert f"ago, on {PROCESSES[where]['host']}" in "\n".join(report_lines(report))


@pytest.mark.parametrize(
    ("pace", "idle", "patience", "remarked"),
    [
        (4.0, 79, 1800, False),  # a step of 7B
        (4.0, 81, 1800, True),
        (0.1, 59, 1800, False),
        (0.1, 61, 1800, True),
        (0.1, 7200, 7000, False),  # that is wrong, and no advice
        (0.1, 7200, 0, True),  # no watchdog
        (None, 1000, 1800, False),
    ],
)
def test_a_step_that_is_late_is_remarked_on_before_it_is_wrong(begun, pace, idle, patience, remarked):
    workdir = beaten(begun, HERE, progress=NOW - idle, pace=pace, patience=patience)
    report = examine(workdir, NOW)
    assert any("no step ended for" in line for line in report["advice"]) == remarked
    assert bool(report["wrong"]) == (0 < patience < idle)
    assert report["step"] == 6
    assert report["seconds_left"] == (2 * pace if pace else None)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone says who holds a lock")
def test_a_run_that_begins_again_after_a_kill_is_not_told_to_end(run):
    workdir = beaten(run(dict(ended=None, doing="training", updated=NOW - 7200)), GONE, 7200)
    with workdir.locked():
        assert examine(workdir, NOW)["wrong"] == []
        beaten(workdir, HERE, doing="starting", since=NOW - 30, step=0, pace=None)
        report = examine(workdir, NOW)
        assert (report["state"], report["wrong"]) == ("starting for 30s", [])
        run(dict(ended=SIGNAL))
        workdir.heartbeat.unlink()
        assert examine(workdir, NOW)["state"] == "starting again"
    with workdir.locked():  # looking at the lock has not taken it
        pass


def test_a_run_elsewhere_that_was_asked_to_end_is_over_though_its_heartbeat_is_left(run):
    workdir = beaten(run(dict(ended=SIGNAL, updated=NOW)), ELSEWHERE)
    assert examine(workdir, NOW)["state"] == "was asked to end at step 8"
    beaten(workdir, ELSEWHERE, written=-30, doing="starting", since=NOW)  # it begins again
    assert examine(workdir, NOW + 30)["state"] == "starting for 30s"
    workdir.heartbeat.write_text("{}")
    assert examine(workdir, NOW)["state"] == "was asked to end at step 8"


def test_a_run_of_an_older_version_on_another_machine_is_judged_by_what_it_wrote(run):
    workdir = run(dict(ended=None, doing="training", updated=NOW, about={"hosts": ["elsewhere"]}))
    assert examine(workdir, NOW)["state"] == "training"
    report = examine(workdir, NOW + 3600)
    assert report["state"] == "silent; it was training"
    assert "nothing was heard for 1h 0m" in report["wrong"][0]


def test_attempts_that_never_reach_a_save_are_noticed(run):
    report = examine(run(*3 * (dict(ended=None, first_step=4, step=6),)))
    assert any("the last three attempts all began at step 4" in line for line in report["wrong"])
    assert len(report["restarts"]) == 2
    assert report["lost_steps"] == 4
    assert "attempt 2 began" in "\n".join(report_lines(report))


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
    assert "memory per device: 15.9 of 16.0 GiB at most" in "\n".join(report_lines(report))
    assert examine(run(dict(seconds=dict(step=400, data_wait=0, checkpoint=0, evaluation=0))))["advice"] == []


def test_bad_steps_and_damaged_checkpoints_are_told(run):
    workdir = run(dict())
    bad = dict(step=5, verdict="not finite", loss="nan", grad_norm="nan", rows=[21], batch=[20, 24], leaves=[])
    workdir.bad_steps.write_text(json.dumps(bad | {"in_a_row": 1}) + "\n")
    workdir.remember(DAMAGED, step=4, reason="wrong checksum", moved_to="aside/4-1")
    said = "\n".join(report_lines(examine(workdir)))
    assert "step 5 skipped, not finite" in said
    assert "checkpoint 4 was damaged (wrong checksum) and is in aside/4-1" in said


def test_a_run_that_never_trained_says_so(run):
    workdir = run()
    shutil.rmtree(workdir.attempts)
    shutil.rmtree(workdir.checkpoints)
    report = examine(workdir)
    assert report["state"] == "begun, and never trained"
    assert "nothing is saved yet" in "\n".join(report_lines(report))


@pytest.mark.parametrize("option", [["--output", "a.png"], ["--row", "3"]])
def test_options_of_data_are_refused_for_a_run(run, capsys, option):
    assert main(["doctor", str(run(dict()).path), *option]) == 2
    assert "transfusion: " in capsys.readouterr().err
