"""Faults, each made to happen to a real training process, and what is lost by them.

Where faults can follow one another they harm one run, whose records must at its end be those of a run to which
nothing happened.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from drills.process import (
    PATIENCE,
    ROOT,
    SAVE_EVERY,
    STEPS,
    Training,
    finish,
    largest_file,
    newest_checkpoint,
    records,
)
from transfusion_jax.cli import main
from transfusion_jax.errors import INTERRUPTED, StorageError, TrainingHalted
from transfusion_jax.storage.paths import place
from transfusion_jax.training.checkpoint.manager import Checkpoints

pytestmark = pytest.mark.drill

POISONED = ROOT / "tests/drills/poisoned.py"
BATCH = 4  # rows


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workdir of a run to which nothing happens."""
    workdir = tmp_path_factory.mktemp("finished")
    finish(workdir)
    return workdir


@pytest.fixture(scope="session")
def undisturbed(finished):
    """Its records."""
    found = records(finished)
    assert list(found) == list(range(1, STEPS + 1))
    assert {"loss", "loss_text", "loss_image", "grad_norm", "learning_rate"} <= found[1].keys()
    assert all("held_out/loss" in found[step] for step in (8, 16, STEPS))
    return found


def restart(workdir, done, until="first step after", **options):
    """The same command again, until it says something; the steps that it does a second time."""
    newest = newest_checkpoint(workdir)
    training = Training(workdir, **options)
    training.wait_for(until)
    assert training.resumed_from == newest
    assert done - newest <= 2 * SAVE_EVERY  # the save before the last may not have been complete
    return training, max(0, done - newest)


def test_kills(tmp_path, undisturbed, drill):
    training = Training(tmp_path)
    training.wait_for("mesh {")
    training, lost = restart(tmp_path, training.kill(), until="step  6/")
    drill("kill -9 while the step compiles", "began again", lost, "yes")

    training, lost = restart(tmp_path, training.kill(), until="step  8/")
    drill("kill -9 in a step", "resumed", lost, "yes")

    training, lost = restart(tmp_path, training.kill())
    drill("kill -9 in an evaluation", "resumed", lost, "yes")

    training.wait_for_file("checkpoints/12.*")
    training, lost = restart(tmp_path, training.kill())
    assert not any(tmp_path.glob("checkpoints/12.*"))
    drill("kill -9 in a save", "the unfinished checkpoint was removed; resumed", lost, "yes")

    training.wait_for("step 14/")
    done = training.kill()
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 99, "loss_te')
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    training, lost = restart(moved, done)
    drill("a half-written line in the metrics", "dropped", lost, "yes")
    drill("the workdir was moved to another place", "resumed there", lost, "yes")
    assert training.end() == 0
    assert records(moved) == undisturbed


def test_a_run_whose_workdir_and_data_are_in_a_bucket(tmp_path, emulated, drill):
    """Compared with a run on a disk, from data that was prepared there."""
    url = f"{emulated}/{tmp_path.name}"
    options = {"data__max_images": 16, "data__workers": 1, "steps": 12, "loop__evaluate_every": 12}
    for folder in (f"{url}/digits", str(tmp_path / "digits")):
        command = ["prepare", "digits", "--output", folder, "--image-size", "8", "--channels", "1"]
        assert main([*command, "--held-out", "0.15", "--limit", "400"]) == 0
    local = json.dumps({"digits": {"path": str(tmp_path / "digits")}})
    finish(tmp_path / "run", **options, data__sources=local)

    options |= {"data__sources": json.dumps({"digits": {"path": f"{url}/digits"}})}
    training = Training(f"{url}/run", **options)
    training.wait_for("step 10/")  # the save of step 8 has waited for that of step 4
    training.kill()
    saved = Checkpoints(place(f"{url}/run/checkpoints")).steps[-1]
    training = finish(f"{url}/run", **options)
    assert training.resumed_from == saved
    drill("kill -9 with workdir and data in a bucket", "resumed there", 10 - saved, "yes")
    assert records(place(f"{url}/run")) == records(tmp_path / "run")

    for command in (
        ["doctor", f"{url}/run"],
        ["evaluate", "--workdir", f"{url}/run", "--suite", "loss"],
    ):
        assert main(command) == 0, command
    written = json.loads(place(f"{url}/run/evaluation.json").read_text())
    loss = records(tmp_path / "run")[12]["held_out/loss"]
    assert written["evaluations"][0]["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)  # on other devices


def test_kills_at_many_moments(tmp_path, undisturbed, drill):
    """Every process lives for a random time after its first step; loader processes must die with it."""
    moments = random.Random(0)
    most = deaths = 0
    training = Training(tmp_path, data__workers=1)
    training.wait_for("first step after")
    while deaths < 6:
        time.sleep(moments.uniform(0, 0.6))
        children = training.children()
        assert len(children) >= 2  # the loader, and Python's tracker of shared memory
        done = training.kill()
        deaths += 1
        end = time.monotonic() + PATIENCE
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.monotonic() < end, "loader processes outlive a kill"
            time.sleep(0.1)
        training, lost = restart(tmp_path, done, data__workers=1)
        most = max(most, lost)
    assert training.end() == 0
    assert records(tmp_path) == undisturbed
    drill(f"kill -9 at random moments, {deaths} times", "resumed each time; no loader left behind", most, "yes")


def test_signals(tmp_path, undisturbed, drill):
    def stopped(training, number=signal.SIGTERM, whole_group=False):
        training.signal(number, whole_group)
        assert training.end() == INTERRUPTED, training.text
        assert "run the same command to go on" in training.text
        return f"saved, exit {INTERRUPTED}"

    training = Training(tmp_path)
    training.wait_for("mesh {")
    happened = stopped(training)
    drill("SIGTERM while the step compiles", happened, 0, "yes")

    training = Training(tmp_path)
    training.wait_for("step  1/")  # on a busy machine it makes more steps before the signal comes; not seven
    happened = stopped(training)
    training, lost = restart(tmp_path, newest_step_said(training), until="step  8/")
    drill("SIGTERM in a step", happened, lost, "yes")

    happened = stopped(training)
    assert "held_out" not in training.text  # it did not wait for the evaluation
    training, lost = restart(tmp_path, 8, data__workers=1)
    assert newest_checkpoint(tmp_path) == 8
    drill("SIGTERM in an evaluation", f"{happened}; evaluated on resuming", lost, "yes")

    training.wait_for("step 11/")
    happened = stopped(training, signal.SIGINT, whole_group=True)
    later = newest_step_said(training) + 3
    training, lost = restart(tmp_path, newest_step_said(training), until=f"step {later:2}/")
    drill("Ctrl-C, which loader processes get too", happened, lost, "yes")

    training.signal(signal.SIGSTOP)  # both signals are there when it goes on
    training.signal(signal.SIGTERM)
    training.signal(signal.SIGINT)
    training.signal(signal.SIGCONT)
    code = training.end()
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    training, lost = restart(tmp_path, newest_step_said(training))
    drill("a second signal", "ended at once, exit 130 or 143", lost, "yes")
    assert training.end() == 0
    assert records(tmp_path) == undisturbed


def newest_step_said(training):
    return max(int(step) for step in re.findall(r"^step +(\d+)/", training.text, re.MULTILINE))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damaged_checkpoints(tmp_path, undisturbed, drill):
    training = Training(tmp_path)
    for fault, damage in [
        ("a flipped bit in the newest checkpoint", flip),
        ("a truncated file in the newest checkpoint", truncate),
        ("a missing file in the newest checkpoint", Path.unlink),
    ]:
        training.wait_for("step 11/")
        time.sleep(0.2)
        done = training.kill()
        newest = newest_checkpoint(tmp_path)
        damage(largest_file(tmp_path / f"checkpoints/{newest}"))
        training = Training(tmp_path)
        training.wait_for("first step after")
        assert f"checkpoint {newest} is damaged" in training.text
        assert training.resumed_from == newest - SAVE_EVERY
        assert list((tmp_path / "aside").glob(f"{newest}-*"))
        drill(fault, f"moved aside; resumed from {training.resumed_from}", done - training.resumed_from, "yes")
    assert training.end() == 0
    assert "Traceback" not in training.text
    assert records(tmp_path) == undisturbed


def test_full_disk(tmp_path, undisturbed, drill):
    """A file system of three megabytes, and later of more; needs the right to mount one."""
    workdir = tmp_path / "small"
    workdir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", workdir], check=True)
    try:
        training = Training(workdir)
        assert training.end() == StorageError.exit_code, training.text
        assert "No space left" in training.lines[-1]
        assert "Traceback" not in training.text
        done, newest = newest_step_said(training), newest_checkpoint(workdir)
        assert f"checkpoint {newest} is whole" in training.lines[-1]
        subprocess.run(["mount", "-o", "remount,size=64m", workdir], check=True)
        training, lost = restart(workdir, done)
        assert training.end() == 0
        assert records(workdir) == undisturbed
    finally:
        subprocess.run(["umount", "--lazy", workdir], check=True)
    drill("a full disk during a save", f"one sentence, exit {StorageError.exit_code}; resumed", lost, "yes")


def test_a_loader_process_dies(tmp_path, undisturbed, drill):
    training = Training(tmp_path, data__workers=1)
    training.wait_for("step  3/")
    spawned = [p for p in training.children() if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(spawned[0], signal.SIGKILL)
    assert training.end() == 0, training.text
    assert "Reading goes on from row" in training.text
    assert records(tmp_path) == undisturbed
    drill("a loader process is killed", "replaced; training went on", 0, "yes")


def test_another_recipe(finished, drill):
    before = sorted(finished.rglob("*"))
    changed = Training(finished, optimizer__beta2=0.99, data__image_first=0.5)
    assert changed.end() == 2
    assert "optimizer.beta2: 0.95 -> 0.99" in changed.text
    assert "data.image_first: 0.2 -> 0.5" in changed.text
    assert sorted(finished.rglob("*")) == before
    drill("resumed with another recipe", "refused with the differences, exit 2", 0, "yes")


def test_more_devices(tmp_path, undisturbed, drill):
    training = Training(tmp_path)
    training.wait_for("step  6/")
    training, lost = restart(tmp_path, training.kill(), devices=2, mesh__data=2)
    assert training.end() == 0
    found = records(tmp_path)
    for step, record in undisturbed.items():
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(found[step][name], record[name], rtol=1e-3)
    drill("resumed on two devices after one", "resharded on loading", lost, "to 1e-3")


def test_a_row_that_is_not_finite(tmp_path, drill):
    """Row 21 is of step 6: the run is killed after it and resumed from before it."""
    options = dict(program=(POISONED, "nan", "21"))
    undisturbed = tmp_path / "undisturbed"
    finish(undisturbed, **options)
    expected = records(undisturbed)
    assert expected[5]["skipped_steps"] == 0
    assert "loss" not in expected[6]  # JSON has no NaN
    assert all(expected[step]["skipped_steps"] == 1 for step in range(6, STEPS + 1))
    (bad,) = [json.loads(line) for line in (undisturbed / "bad_steps.jsonl").read_text().splitlines()]
    assert (bad["step"], bad["rows"], bad["verdict"]) == (6, [21], "not finite")
    assert "patch_coder/patch_in" in bad["leaves"]

    harmed = tmp_path / "harmed"
    training = Training(harmed, **options)
    training.wait_for("step 7/".replace("step ", "step  "))
    assert "step 6 skipped, not finite: loss nan (row 21)" in training.text
    training, lost = restart(harmed, training.kill(), **options)
    assert training.end() == 0
    assert records(harmed) == expected
    assert (harmed / "bad_steps.jsonl").read_text() == (undisturbed / "bad_steps.jsonl").read_text()
    drill("a row with a NaN, and kill -9 after it", "its step skipped, row and gradients named", lost, "yes")


def test_too_many_bad_steps(tmp_path, drill):
    """Steps 7 to 10 are bad and three are too many: killed after two, saved at 8, the count goes on."""
    options = dict(program=(POISONED, "nan", "24,28,32,36"), guard__max_in_a_row=3)
    training = Training(tmp_path, **options)
    training.wait_for_file("checkpoints/8")
    training.kill()
    assert newest_checkpoint(tmp_path) == 8
    again = Training(tmp_path, **options)
    assert again.end() == TrainingHalted.exit_code, again.text
    assert again.says("step 9 skipped, not finite: loss nan (row 32)")
    assert "3 in a row" in again.text
    assert "training stopped itself at step 9" in again.lines[-1]
    assert "--rewind-to 4 --skip-rows 24:33" in again.lines[-1]
    assert newest_checkpoint(tmp_path) == 8
    drill("bad steps in a row, and kill -9 among them", "counted on; stopped, exit 3", 0, "yes")

    flags = ["--rewind-to", "4", "--skip-rows", "24:40"]
    rewound = Training(tmp_path, *flags, **options)
    rewound.wait_for("step  9/")
    rewound.kill()
    finish(tmp_path, *flags, **options)  # the same command resumes
    found = records(tmp_path)
    assert list(found) == list(range(1, STEPS + 1))
    assert found[STEPS]["skipped_steps"] == 0
    assert (tmp_path / "aside/rewind-1/8-1").is_dir()
    assert list(records(tmp_path / "aside/rewind-1")) == list(range(1, 9))
    history = json.loads((tmp_path / "manifest.json").read_text())["history"]
    assert [entry["event"] for entry in history] == ["start", "resume", "rewind", "resume"]
    drill("--rewind-to 4 --skip-rows, and kill -9 after it", "trained on without them", 0, "yes")


def test_a_spike(tmp_path, drill):
    """Row 61 is of step 16; the wrong loss weights that it has do not move its step's gradients by a little."""
    guard = dict(guard__spikes="skip", guard__spike_window=8)
    finish(tmp_path / "skipped", program=(POISONED, "spike", "61"), **guard)
    found = records(tmp_path / "skipped")
    assert [found[step]["skipped_steps"] for step in (15, 16, STEPS)] == [0, 1, 1]
    assert found[16]["grad_norm"] > 10 * found[15]["grad_norm"]
    assert found[17]["loss"] < 1.2 * found[15]["loss"]
    stopped = Training(tmp_path / "stopped", program=(POISONED, "spike", "61"), **guard | {"guard__spikes": "stop"})
    assert stopped.end() == TrainingHalted.exit_code
    assert "--rewind-to 12 --skip-rows 61:62" in stopped.lines[-1]
    drill("a spike in one row", "skipped, or stopped with exit 3, as configured", 0, "yes")
