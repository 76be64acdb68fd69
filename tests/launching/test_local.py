"""`transfusion launch local`: real training in two processes, harmed and resumed, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drills.process import ROOT, records
from transfusion_jax.cli import main

TRAIN = [*("train", "--config", "configs/debug.py"), "--config.loop.log_every=1", "--config.loop.evaluate_every=0"]


@pytest.mark.slow
def test_a_run_that_lost_a_process_is_started_again_and_ends_with_equal_losses(tmp_path):
    undisturbed = Launched(tmp_path / "a")
    assert undisturbed.end() == 0, undisturbed.text
    assert "2 processes" in undisturbed.text

    saving = [*TRAIN, "--config.loop.save_every=2"]  # so that one checkpoint is whole by then
    harmed = Launched(tmp_path / "b", "--restarts=1", "--grace=10", train=saving)
    harmed.wait_for("step 13/")
    os.kill(harmed.process_number(1), signal.SIGKILL)
    assert harmed.end() == 0, harmed.text
    for line in ("process 1 ended with 137 (SIGKILL)", "restart 1 of 1", "resumed from step"):
        assert line in harmed.text
    assert records(tmp_path / "b") == records(tmp_path / "a")


def test_a_dry_run_prints_each_process_and_starts_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_cpu_enable_fast_math=false")
    options = ["--processes", "3", "--devices-per-process", "2", "--env", "A=b c", "--dry-run"]
    command = [*TRAIN, "--workdir", str(tmp_path / "run")]
    assert main(["launch", "local", *options, "--", *command]) == 0
    lines = capsys.readouterr().out.splitlines()
    for number, line in enumerate(lines):
        assert f"JAX_PROCESS_ID={number} " in line
        assert "A='b c' " in line
        assert "--workdir" in line
    assert main(["launch", "local", *options, "--json", "--", *command]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["processes"]) == len(lines) == 3
    environment = report["processes"][2]["environment"]
    assert environment["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=2"
    assert environment["JAX_NUM_PROCESSES"] == "3"
    assert len({process["environment"]["JAX_COORDINATOR_ADDRESS"] for process in report["processes"]}) == 1
    assert report["processes"][0]["command"][-len(command) :] == command
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["local"], "launch needs -- and a command after it"),
        (["local", "--processes", "0", "--", *TRAIN], "--processes: 0 must be at least 1"),
        (["local", "--devices-per-process", "0", "--", *TRAIN], "--devices-per-process: 0 must be at least 1"),
        (["local", "--restarts", "-1", "--", *TRAIN], "--restarts: -1 must be at least 0"),
        (["local", "--grace", "0", "--", *TRAIN], "--grace: 0 must be at least 1"),
        (["local", "--env", "1=2", "--", *TRAIN], "--env 1=2 must be KEY=VALUE"),
        (["local", "--json", "--", *TRAIN], "--json goes with --dry-run"),
        (["local", "--", *TRAIN, "--config.model.widht=3"], "did you mean 'width'?"),
        (["local", "--", "launch", "local"], "launch cannot launch itself"),
        (["local", "--config.seed=1", "--", *TRAIN], "is an option of the command that stands after --"),
    ],
)
def test_what_cannot_be_launched_is_one_sentence(words, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["launch", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_mistake_in_the_command_is_found_before_anything_starts(capsys):
    assert main(["launch", "local", "--", "train", "--wrokdir", "x"]) == 2
    assert "--wrokdir" in capsys.readouterr().err


def test_a_command_after_dashes_goes_with_launch_alone(capsys):
    assert main(["train", "--dry-run", "--config", "configs/debug.py", "--", "train"]) == 2
    assert "-- and a command after it go with launch" in capsys.readouterr().err


class Launched:
    """Two processes that train configs/debug.py."""

    def __init__(self, workdir, *options, train=TRAIN):
        self.text = ""
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-um", "transfusion_jax.cli", "launch", "local", "--processes=2", *options),
                *("--", *train, "--workdir", str(workdir)),
            ],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait_for(self, text):
        """Returns once a line holds the text."""
        for line in self.process.stdout:
            self.text += line
            if text in line:
                return
        raise AssertionError(f"no {text!r} in:\n{self.text}")

    def end(self):
        """The exit code, once all has been printed."""
        self.text += self.process.stdout.read()
        return self.process.wait()

    def process_number(self, number):
        """The pid of one of the processes."""
        wanted = f"JAX_PROCESS_ID={number}".encode()
        for path in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            if wanted in Path(f"/proc/{path}/environ").read_bytes().split(b"\0"):
                return int(path)
        raise AssertionError(f"no process {number}")
