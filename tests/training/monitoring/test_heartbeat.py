"""What a live run says of itself."""

import os

import pytest

from transfusion_jax.storage.lock import has_ended
from transfusion_jax.training.monitoring import heartbeat as heartbeats
from transfusion_jax.training.monitoring.heartbeat import heartbeat, read_heartbeat
from transfusion_jax.training.monitoring.watchdog import Beat


def test_it_says_what_the_main_thread_does_and_goes_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeats, "EVERY", 0.01)
    path, beat = tmp_path / "heartbeat.json", Beat()
    with heartbeat(path, beat, 1800):
        first = read_heartbeat(path)
        assert not has_ended(first.process)
        assert (first.process["process"], first.doing, first.step, first.pace) == (os.getpid(), "starting", 0, None)
        assert first.patience == 1800
        beat.turn("compiling the first step")
        said = heard(path, "compiling the first step")
        assert said.since == pytest.approx(said.progress, abs=1e-3)
        beat.last -= 100  # as if the main thread had not gone on since
        while said.written - said.progress < 99:
            said = read_heartbeat(path)
    assert read_heartbeat(path) is None


def heard(path, doing):
    """The first heartbeat that says so."""
    while (said := read_heartbeat(path)).doing != doing:
        pass
    return said


def test_storage_that_fails_hinders_nothing(tmp_path):
    with heartbeat(tmp_path / "no folder/heartbeat.json", Beat(), 0):
        pass


def test_the_pace_is_that_of_the_steps_so_far_with_what_is_done_beside_them():
    beat = Beat()
    assert beat.pace is None
    beat.stepped(5)
    assert beat.pace is None  # the first step holds the compilation
    beat.step, beat.last = 20, beat.last + 60.0
    assert beat.pace == pytest.approx(4.0)
