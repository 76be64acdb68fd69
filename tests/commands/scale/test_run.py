"""`scale run` as a user runs it: real runs, real signals."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import xla
from ladder_files import make_ladder
from transfusion_jax.cli import main
from transfusion_jax.errors import INTERRUPTED

ROOT = Path(__file__).parents[3]


def scale(*words, **options):
    command = [sys.executable, "-m", "transfusion_jax.cli", "scale", "run", *map(str, words)]
    environment = os.environ | xla.ONE_DEVICE
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A ladder that nothing disturbed, and what the command printed."""
    folder = tmp_path_factory.mktemp("whole")
    process = scale("--ladder", make_ladder(folder), "--workdir", folder / "W", "--jobs", 2)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return folder, output


@pytest.mark.slow
def test_the_sweep_then_the_points_then_their_numbers(whole):
    folder, output = whole
    assert "tiny: learning rate 0.01, at the sweep's end: a wider one may find a better" in output
    rows = list(csv.DictReader((folder / "W/points.csv").open()))
    assert [(row["family"], row["size"], row["steps"]) for row in rows] == [
        ("tiny", "16", "3"),
        ("tiny", "32", "3"),
    ]
    assert all(float(row["learning_rate"]) == 0.01 and 0 < float(row["loss_text"]) < 10 for row in rows)
    lines = [json.loads(line) for line in (folder / "W/points.jsonl").read_text().splitlines()]
    assert all((folder / "W" / line["samples"]).is_file() and line["wall_seconds"] > 0 for line in lines)
    assert lines[0]["flops_6nd"] == 6 * lines[0]["parameters"] * 128 * 4 * 3


@pytest.mark.slow
def test_its_points_are_what_fit_and_plot_read(whole, capsys):
    workdir = str(whole[0] / "W")
    assert main(["scale", "fit", "--workdir", workdir, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"loss_text", "loss_image"} <= {metric["name"] for metric in found["metrics"]}
    assert found["unused"] == ["loss"]  # its sum is of each family's own; what is about a run is no metric
    assert main(["scale", "plot", "--workdir", workdir]) == 0
    assert "Samples along the ladder" in (whole[0] / "W/plots/report.html").read_text()


@pytest.mark.slow
def test_again_there_is_nothing_left_to_do(whole):
    folder, _ = whole
    before = (folder / "W/points.csv").read_bytes()
    output = scale("--ladder", folder / "ladder.py", "--workdir", folder / "W").communicate()[0]
    assert output.count("2 of 2 runs are done") == 2
    assert (folder / "W/points.csv").read_bytes() == before


@pytest.mark.slow
def test_runs_of_another_recipe_are_not_taken_for_the_ladders(whole, tmp_path, capsys):
    other = tmp_path / "ladder.py"
    other.write_text((whole[0] / "ladder.py").read_text().replace("sweep=", "warmup=1.0, sweep="))
    assert main(["scale", "run", "--ladder", str(other), "--workdir", str(whole[0] / "W")]) == 2
    said = capsys.readouterr().err
    assert "was trained otherwise than the ladder now says:\n  optimizer.warmup_steps: 1 -> 2" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir", "W", "--launch", "slurm --name mine"], "leave --name out, it is for one job"),
        (["--workdir", "W", "--dry-run"], "leave --workdir out"),
        (["--workdir", "W", "--json"], "--json goes with --dry-run"),
    ],
)
def test_what_a_ladder_cannot_honour_is_refused(words, message, tmp_path, capsys):
    assert main(["scale", "run", "--ladder", str(make_ladder(tmp_path)), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_killed_half_way_and_started_again_the_numbers_are_the_same(whole, tmp_path):
    words = "--ladder", make_ladder(tmp_path), "--workdir", tmp_path / "W", "--jobs", 2
    for number, code, seen in (
        (signal.SIGKILL, -signal.SIGKILL, "sweep-*/metrics.jsonl"),
        (signal.SIGTERM, INTERRUPTED, "tiny-*/metrics.jsonl"),
        (signal.SIGKILL, -signal.SIGKILL, "tiny-*/checkpoints/3"),  # saved; its last evaluation is under way
    ):
        process = scale(*words, start_new_session=True)
        wait_for(lambda seen=seen: list((tmp_path / "W").glob(seen)), process)
        process.send_signal(number)
        process.communicate()
        assert process.returncode == code
    again = scale(*words)
    output = again.communicate()[0]
    assert again.returncode == 0, output
    assert (tmp_path / "W/points.csv").read_text() == (whole[0] / "W/points.csv").read_text()


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    ladder = make_ladder(tmp_path)
    text = ladder.read_text().replace('sweep=dict(rates=(1e-3, 1e-2), size="16", elements=128 * 4 * 2),', "")
    ladder.write_text(text)
    (tmp_path / "W/tiny-16-1536").mkdir(parents=True)
    (tmp_path / "W/tiny-16-1536/config.json").write_text("no config")
    process = scale("--ladder", ladder, "--workdir", tmp_path / "W")
    output = process.communicate()[0]
    assert process.returncode == 1
    assert "tiny-16-1536: exit code" in output
    assert "tiny-32-1536: done" in output
    assert len((tmp_path / "W/points.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_run_that_ends_without_scores_is_not_done(tmp_path):
    ladder = make_ladder(tmp_path)
    ladder.write_text(re.sub(r"sweep=.*", 'changes=("loop.stop_at=1",),', ladder.read_text()))
    process = scale("--ladder", ladder, "--workdir", tmp_path / "W", "--jobs", 2)
    output = process.communicate()[0]
    assert process.returncode == 1, output
    assert output.count("it has ended without scores, see") == 2
    assert not (tmp_path / "W/points.csv").read_text().strip()


def wait_for(condition, process, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, os.listdir(".")
        time.sleep(0.05)
