"""`transfusion launch slurm`: the script, and a real Slurm of one node (`make slurm`)."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from drills.process import ROOT, records
from ladder_files import make_ladder
from launching.shell import assert_sound
from transfusion_jax.cli import main

PATIENCE = 600  # seconds for anything to happen
TRAIN = ["train", "--config", "configs/debug.py", "--config.loop.log_every=1", "--config.loop.evaluate_every=0"]
TRAIN = [*TRAIN, "--config.steps=40"]  # so that a signal comes before the end


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A running Slurm, named by SLURM_CONF."""
    folder = tmp_path_factory.mktemp("slurm")
    tool = ROOT / "launch/slurm/one-node.sh"
    started = subprocess.run([tool, "start", folder], text=True, capture_output=True, check=False)
    assert started.returncode == 0, started.stderr
    name, _, value = started.stdout.strip().removeprefix("export ").partition("=")
    os.environ[name] = value
    yield folder
    run("scancel", "--user=root")
    run(tool, "stop", folder)
    del os.environ[name]


@pytest.mark.slurm
def test_a_job_is_requeued_cancelled_and_submitted_again_with_equal_losses(cluster, tmp_path):
    undisturbed = transfusion("launch", "local", "--processes=2", "--", *TRAIN, "--workdir", str(tmp_path / "a"))
    assert undisturbed.returncode == 0, undisturbed.stderr

    workdir = tmp_path / "b"
    command = ["launch", "slurm", "--tasks-per-node=2", "--", *TRAIN, "--workdir", str(workdir)]
    first = submitted(command)
    assert f"is already there: {first} is" in transfusion(*command).stdout
    wait_for_line(workdir, first, "step  6/")
    run("scancel", "--signal=TERM", first)
    wait_for_line(workdir, first, "exit code 75: back into the queue")
    wait_for_line(workdir, first, "resumed from step")
    saved = int(log(workdir, first).partition("resumed from step ")[2].split()[0])
    wait_for_line(workdir, first, f"step {saved + 3:2}/")
    assert "Restarts=1 " in show(first)
    run("scancel", first)
    wait_for_line(workdir, first, "cancelled; the same launch command goes on")
    assert wait_for_end(first) == "CANCELLED"

    second = submitted(command)
    assert second != first
    assert wait_for_end(second) == "COMPLETED", log(workdir, second)
    assert "resumed from step" in log(workdir, second)
    assert records(workdir) == records(tmp_path / "a")


@pytest.mark.slurm
def test_what_another_start_cannot_mend_is_not_requeued(cluster, tmp_path):
    options = ["--config.batch_rows=3", "--workdir", str(tmp_path)]  # three rows and two devices
    number = submitted(["launch", "slurm", "--tasks-per-node=2", "--name=odd", "--", *TRAIN, *options])
    assert wait_for_end(number) == "FAILED"
    assert "ExitCode=2:0" in show(number)
    assert "exit code 2: see what is above; running this again would change nothing" in log(tmp_path, number)


@pytest.mark.slurm
def test_a_ladders_runs_are_jobs(cluster, tmp_path):
    ladder, workdir = make_ladder(tmp_path), tmp_path / "W"
    command = ["scale", "run", "--ladder", str(ladder), "--workdir", str(workdir), "--jobs", "2"]
    command += ["--launch", "slurm --sbatch=--hold"]  # so that they are there when the command is given again
    for part in ("sweep-", "tiny-"):
        for said in ("submitted train-", "is already there"):
            result = transfusion(*command)
            assert result.returncode == 0, result.stderr
            assert result.stdout.count("its job is in ") == 2, result.stdout
            assert [path.read_text().count(said) for path in workdir.glob(f"{part}*.log")] == [1, 1]
        run("scontrol", "release", *run("squeue", "--noheader", "--format=%i").stdout.split())
        wait_until_idle()
    result = transfusion(*command)
    assert "2 of 2 runs are done\nwritten to " in result.stdout, result.stdout
    assert len((workdir / "points.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--nodes=4", "--gpus-per-node=8", "--per-gpu", "--time=2-0", "--partition=big", "--sbatch=--account=a b"],
        ["--env=A=it's; $(here)", "--env=B=", "--logs=with a space", "--restarts=0", "--grace=7"],
    ],
)
def test_the_script_is_sound_shell(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    command = [*TRAIN, "--workdir", str(tmp_path / "it's")]
    assert main(["launch", "slurm", *options, "--dry-run", "--", *command]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert_sound(script)
    assert not (tmp_path / "it's").exists()


def test_options_stand_in_the_script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    options = ["--nodes=4", "--gpus-per-node=8", "--per-gpu", "--time=2-0", "--sbatch=--account=us", "--grace=7"]
    assert main(["launch", "slurm", *options, "--dry-run", "--", *TRAIN, "--workdir", str(tmp_path / "Run_7")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("#SBATCH --job-name=train-run-7-") for line in lines)
    for option in (
        *("--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=2-0"),
        *("--account=us", "--signal=TERM@7", "--requeue", f"--output={tmp_path}/Run_7/logs/slurm-%j.log"),
    ):
        assert f"#SBATCH {option}" in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--per-gpu"], "--per-gpu needs --gpus-per-node"),
        (["--nodes=0"], "--nodes: 0 must be at least 1"),
        (["--tasks-per-node=0"], "--tasks-per-node: 0 must be at least 1"),
        (["--grace=70000"], "at most --grace 65535"),
        (["--name=A_b"], "--name A_b must be at most 40"),
        ([], "this machine has no sbatch: run this where jobs are submitted"),
    ],
)
def test_what_cannot_be_submitted_is_one_sentence(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", "slurm", *options, "--", *TRAIN, "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def submitted(command):
    """The number of the job that was submitted."""
    result = transfusion(*command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("submitted "), result.stdout
    return result.stdout.partition(" as job ")[2].partition(";")[0]


def wait_for_line(workdir, number, text):
    end = time.monotonic() + PATIENCE
    while text not in log(workdir, number):
        assert time.monotonic() < end, f"no {text!r} in:\n{log(workdir, number)}\n{show(number)}"
        time.sleep(0.1)


def wait_for_end(number):
    """The state of a job once it is none that changes."""
    end = time.monotonic() + PATIENCE
    while (state := show(number).partition("JobState=")[2].split()[0]) in ("PENDING", "RUNNING", "COMPLETING"):
        assert time.monotonic() < end, show(number)
        time.sleep(0.2)
    return state


def wait_until_idle():
    end = time.monotonic() + PATIENCE
    while jobs := run("squeue", "--noheader").stdout:
        assert time.monotonic() < end, jobs
        time.sleep(0.2)


def log(workdir, number):
    path = workdir / f"logs/slurm-{number}.log"
    return path.read_text() if path.exists() else ""


def show(number):
    return run("scontrol", "show", "job", number).stdout


def transfusion(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    words = [sys.executable, "-m", "transfusion_jax.cli", *arguments]
    return subprocess.run(words, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)


def run(*words):
    assert shutil.which(words[0]), f"{words[0]} is missing: apt-get install slurm-wlm munge"
    return subprocess.run(words, text=True, capture_output=True, check=False)
