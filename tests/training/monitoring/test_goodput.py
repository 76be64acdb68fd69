from types import SimpleNamespace

import pytest

from transfusion_jax.training.monitoring import goodput
from transfusion_jax.training.monitoring.goodput import (
    DONE,
    KINDS,
    SIGNAL,
    Attempt,
    Clock,
    account,
    describe_account,
    end_of,
    read_attempts,
    write_attempt,
)


def attempt(number, began, first_step, last_step, ended=None, **seconds):
    return Attempt(
        number, began, 0.0, first_step, last_step, dict.fromkeys(KINDS, 0.0) | seconds, "training", ended
    )


def test_every_second_of_one_attempt_has_its_kind():
    whole = account([attempt(1, 0, 0, 10, start=2, compile=3, step=4, data_wait=1)])
    assert whole.total == 10
    assert whole.metrics["goodput"] == 0.4
    assert whole.metrics["goodput/compile"] == 0.3
    assert sum(whole.metrics.values()) == pytest.approx(1)
    assert describe_account(whole) == "goodput 40% of 10s: compile 30%  start 20%  data wait 10%"


def test_lost_steps_and_the_time_between_attempts_are_the_restarts():
    first = attempt(1, 0, 0, 100, step=50)  # half a second a step, killed; the last checkpoint was at 60
    second = attempt(2, 57, 60, 80, SIGNAL, step=10)
    whole = account([first, second])
    assert whole.lost_steps == 40
    assert whole.seconds["restart"] == 40 * 0.5 + 7
    assert whole.seconds["step"] == 60 * 0.5 + 10
    assert whole.total == 50 + 7 + 10
    assert "in 2 attempts, with 40 steps made again" in describe_account(whole)


def test_an_attempt_that_died_before_its_first_step_loses_no_step_twice():
    attempts = [attempt(1, 0, 0, 100, step=100), attempt(2, 100, 90, 90, start=5), attempt(3, 105, 40, 41, step=1)]
    whole = account(attempts)
    assert whole.lost_steps == 60  # the checkpoint at 90 proved damaged: 41 to 100 were made once in vain
    assert whole.seconds["restart"] == 60


def test_steps_of_several_attempts_are_lost_each_once():
    attempts = [attempt(1, 0, 0, 10, step=10), attempt(2, 10, 4, 12, step=8), attempt(3, 18, 4, 5, step=1)]
    assert account(attempts).lost_steps == 6 + 8


def test_the_time_after_a_finished_run_is_nobodys():
    assert account([attempt(1, 0, 0, 10, DONE, step=10), attempt(2, 9999, 10, 20, step=10)]).total == 20


def test_a_clock_gives_each_moment_one_kind(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(goodput, "time", SimpleNamespace(time=lambda: now[0], perf_counter=lambda: now[0]))
    clock = Clock(began=95.0)
    clock.turn("compile")
    with clock.within("evaluation"):
        now[0] += 2
    assert clock.kind == "compile"
    clock.turn("step")
    now[0] += 1
    clock.turn("step", counts_as="data_wait")
    now[0] += 4
    assert clock.seconds == dict.fromkeys(KINDS, 0.0) | dict(start=5, evaluation=2, data_wait=1, step=4)


def test_attempts_are_kept_in_order(tmp_path):
    assert read_attempts(tmp_path / "none") == []
    attempts = [attempt(number, number, 0, 1) for number in range(1, 12)]
    for one in reversed(attempts):
        write_attempt(tmp_path, one)
    assert read_attempts(tmp_path) == attempts


def test_how_an_attempt_ended_is_a_predicate():
    assert end_of(attempt(1, 0, 0, 7, DONE)) == "finished at step 7"
    assert end_of(attempt(1, 0, 0, 7, SIGNAL)) == "was asked to end at step 7"
    assert end_of(attempt(1, 0, 0, 7, "StorageError: full")) == "ended by StorageError: full at step 7"
    assert "killed" in end_of(attempt(1, 0, 0, 7))
