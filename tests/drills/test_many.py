"""Faults of runs of many processes, and runs that move to other numbers of them and other meshes."""

import re
import signal

import numpy as np
import pytest

from drills.process import (
    STEPS,
    Many,
    finish,
    newest_checkpoint,
    newest_step,
    records,
)
from transfusion_jax.errors import INTERRUPTED, LostProcess

pytestmark = pytest.mark.drill

TWO = dict(devices=2, mesh__data=1, mesh__fsdp=2, mesh__context=2)  # two processes of two devices
FOUR = dict(devices=2, mesh__data=2, mesh__context=2, mesh__tensor=2)
NO_EVALUATION = dict(loop__evaluate_every=0)
LOST = LostProcess.exit_code
KILLED = -signal.SIGKILL
ABORTED = -signal.SIGABRT  # by JAX, where another process is gone


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Records of two processes to which nothing happens."""
    workdir = tmp_path_factory.mktemp("many")
    many = Many(workdir, 2, **TWO)
    assert many.end() == [0, 0], many.text
    assert "Traceback" not in many.text
    return records(workdir)


def without_evaluation(records):
    return {
        step: {name: value for name, value in record.items() if not name.startswith("held_out")}
        for step, record in records.items()
    }


def resume(workdir, done, until="first step after", processes=2, **options):
    """The same command again, and the steps that it does a second time."""
    newest = newest_checkpoint(workdir)
    many = Many(workdir, processes, **(options or TWO))
    many[0].wait_for(until)
    assert many[0].resumed_from == newest
    return many, max(0, done - newest)


def newest_step_said(many):
    return max(int(step) for step in re.findall(r"^step +(\d+)/", many[0].text, re.MULTILINE))


def test_signals_to_many(tmp_path, undisturbed, drill):
    many = Many(tmp_path, 2, **TWO)
    many[0].wait_for("step  5/")
    many[1].signal(signal.SIGTERM)
    assert many.end() == [INTERRUPTED, INTERRUPTED], many.text
    many, lost = resume(tmp_path, newest_step_said(many), until="step 12/")
    drill("two processes: SIGTERM to one", "both saved after the same step, exit 75", lost, "yes")

    many.signal(signal.SIGTERM)
    assert many.end() == [INTERRUPTED, INTERRUPTED], many.text
    many, lost = resume(tmp_path, newest_step_said(many))
    drill("two processes: SIGTERM to both", "both saved after the same step, exit 75", lost, "yes")

    assert many.end() == [0, 0], many.text
    assert records(tmp_path) == undisturbed


def test_a_signal_while_many_evaluate(tmp_path, undisturbed, drill):
    many = Many(tmp_path, 2, **TWO)
    many[0].wait_for("step  8/")
    many.signal(signal.SIGTERM)
    assert many.end() == [INTERRUPTED, INTERRUPTED], many.text
    assert newest_checkpoint(tmp_path) == 8
    assert "held_out" not in many.text
    many, lost = resume(tmp_path, 8)
    assert many.end() == [0, 0], many.text
    assert records(tmp_path) == undisturbed
    drill("two processes: SIGTERM to both in an evaluation", "exit 75; evaluated on resuming", lost, "yes")


def test_kills_of_one_of_many(tmp_path, undisturbed, drill):
    options = TWO | NO_EVALUATION
    many = Many(tmp_path, 2, **options)
    many[0].wait_for("step  6/")
    many[1].signal(signal.SIGKILL)
    codes = many.end()  # aborted after 100 s where a device waits that does not see the connection close
    assert codes[0] in (LOST, ABORTED), many.text
    assert codes[1] == KILLED, many.text
    assert codes[0] == ABORTED or "another process is gone" in many[0].lines[-1]
    assert "Traceback" not in many.text
    many, lost = resume(tmp_path, newest_step(tmp_path), **options)
    drill("two processes: kill -9 of one in a step", f"the other ended, exit {LOST} or 134; resumed", lost, "yes")

    many[0].wait_for_file("checkpoints/12.*")
    many[1].signal(signal.SIGKILL)
    codes = many.end()  # one that waits for the other's part of the save is aborted after 100 s
    assert codes[0] in (LOST, ABORTED), many.text
    many, lost = resume(tmp_path, newest_step(tmp_path), **options)
    assert not any(tmp_path.glob("checkpoints/12.*"))
    drill("two processes: kill -9 of one in a save", f"the other ended, exit {LOST} or 134; resumed", lost, "yes")

    many[0].wait_for("step 17/")
    many[0].signal(signal.SIGKILL)
    codes = many.end()
    assert codes[1] in (LOST, ABORTED), many.text
    many, lost = resume(tmp_path, newest_step(tmp_path), **options)
    drill("two processes: kill -9 of the first", f"the other ended, exit {LOST} or 134; resumed", lost, "yes")

    assert many.end() == [0, 0], many.text
    assert records(tmp_path) == without_evaluation(undisturbed)


def test_one_of_many_hangs(tmp_path, undisturbed, drill):
    # Longer than compiling takes, and less than 50 s: then JAX misses the heartbeats of a stopped process.
    options = TWO | NO_EVALUATION | dict(loop__hang_after=45)
    many = Many(tmp_path, 2, **options)
    many[0].wait_for("step  6/")
    many[1].signal(signal.SIGSTOP)
    assert many[0].end() == LOST, many.text
    assert "nothing went on for 45 s" in many[0].text
    assert "loop.py" in many[0].text  # where its threads stood
    many[1].signal(signal.SIGKILL)
    many[1].end()
    many, lost = resume(tmp_path, newest_step(tmp_path), **options)
    assert "the one before ended by a hang: nothing went on for 45 s" in many[0].text
    assert many.end() == [0, 0], many.text
    assert records(tmp_path) == without_evaluation(undisturbed)
    drill("two processes: one hangs", f"the watchdog showed stacks, exit {LOST}; resumed", lost, "yes")


def test_one_of_many_has_another_config(tmp_path, drill):
    many = Many(tmp_path / "run", 2, **TWO, apart={1: dict(optimizer__beta2=0.99)})
    assert many.end() == [2, 2], many.text
    assert "process 1 was started with another config" in many[0].text
    assert "optimizer.beta2: 0.95 -> 0.99" in many[0].text
    assert not (tmp_path / "run").exists()
    drill("two processes: one has another config", "refused with the differences, exit 2", 0, "yes")


def test_a_corrupt_prepared_shard(tmp_path, digits_folder, drill):
    """One of the processes meets the damage first; the other must not wait for it."""
    options = (
        TWO
        | NO_EVALUATION
        | {"data.sources": f"{{'digits': {{'path': '{digits_folder}'}}}}", "data.max_images": 16}
    )
    shard = digits_folder / "pixels-00000.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 4) + whole[len(whole) * 3 // 4 :])
    try:
        many = Many(tmp_path, 2, **options)
        codes = many.end()
    finally:
        shard.write_bytes(whole)
    assert sorted(codes) in ([2, LOST], [2, 2]), many.text
    assert f"{shard.name} is damaged" in many.text
    assert "Traceback" not in many.text
    many, lost = resume(tmp_path, newest_step(tmp_path), **options)
    assert many.end() == [0, 0], many.text
    drill("two processes: a damaged shard of the data", "one sentence, exit 2; mended, resumed", lost, "yes")


def test_moving(tmp_path, drill):
    """From four processes to two, to one, and to four again, with other meshes: the same rows and noise."""
    finish(tmp_path / "alone", **NO_EVALUATION)
    expected = records(tmp_path / "alone")
    moved = tmp_path / "moved"
    for step, processes, options in [(5, 4, FOUR), (11, 2, TWO), (17, 1, {}), (STEPS, 4, FOUR)]:
        many = Many(moved, processes, **options | NO_EVALUATION)
        many[0].wait_for(f"step {step:>2}/")
        if step < STEPS:
            many[processes - 1].signal(signal.SIGTERM)
        assert many.end() == [INTERRUPTED if step < STEPS else 0] * processes, many.text
    found = records(moved)
    assert list(found) == list(expected)
    for step, record in expected.items():
        assert found[step].keys() == record.keys()
        for name, value in record.items():
            exact = name in ("elements", "images", "text_losses", "span_area", "step")
            np.testing.assert_allclose(
                found[step][name], value, rtol=0 if exact else 1e-3, err_msg=f"{step} {name}"
            )
    drill("moved: 4 processes, 2, 1, and 4 again, on other meshes", "resharded on loading", 0, "to 1e-3")
