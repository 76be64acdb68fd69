"""docs/extending.md, run as it stands: its files are written, and its commands are run in their order."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import xla

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extending.md").read_text()
FILES = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("transfusion ")]
PRINTED = re.findall(r"^  (\w+) +([\d.]+)$", PAGE, re.MULTILINE)
POEMS = "roses are red\n---\nviolets are blue\n---\nsugar is sweet"
RUN = "import json, sys; from transfusion_jax.cli import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
QUICK = ("--config.loop.evaluate_every=0", "--config.loop.save_every=20")  # the commands are not changed otherwise


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where everything was run, with what it printed."""
    path = tmp_path_factory.mktemp("extending")
    for name, text in FILES:
        (path / name).write_text(text)
    (path / "configs").symlink_to(ROOT / "configs")
    (path / "verses.poem").write_text(POEMS)
    with_files = [command for command in COMMANDS if "--config " in command or " prepare " in command]
    run(path, with_files)
    (path / "mine.py").unlink()  # the runs keep what they need of it
    (path / "coders.py").unlink()
    alone = [command for command in COMMANDS if command not in with_files]
    (path / "printed").write_text(run(path, [*alone, "transfusion evaluate --workdir runs/deep --suite loss"]))
    return path


def run(path, commands):
    """What a process prints that runs some commands."""
    lines = [[*shlex.split(c)[1:], *(QUICK if "--config " in c else ())] for c in commands]
    one_device = os.environ | xla.ONE_DEVICE
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(lines)], cwd=path, env=one_device, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_adds_one_of_each_kind_in_less_than_thirty_lines():
    assert [name for name, _ in FILES] == ["mine.py", "coders.py", "judges.py", "readers.py", "hooks.py"]
    assert max(len([line for line in text.splitlines() if line]) for _, text in FILES) < 30
    assert [command.split()[1] for command in COMMANDS] == [*["train"] * 3, "evaluate", "prepare", "train"]


@pytest.mark.slow
def test_the_schedule_trains_and_its_run_is_resumed_from_the_workdir_alone(folder):
    config = json.loads((folder / "runs/sigmoid/config.json").read_text())
    assert (config["steps"], config["diffusion"]["schedule"]) == (30, "sigmoid")
    assert config["extensions"] == {"mine.py": dict(FILES)["mine.py"]}
    lines = [json.loads(line) for line in (folder / "runs/sigmoid/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines][-1] == 30
    assert all("loss_image" in line for line in lines if "loss" in line)


@pytest.mark.slow
def test_the_coder_trains_with_parameters_of_its_own_and_is_evaluated_from_the_workdir_alone(folder):
    config = json.loads((folder / "runs/deep/config.json").read_text())
    assert config["model"]["patch_coder"] == "deep"
    assert sorted(config["extensions"]) == ["coders.py", "mine.py"]
    assert b"hidden_in" in (folder / "runs/deep/checkpoints/20/state/_METADATA").read_bytes()
    assert "runs/deep: step 20" in (folder / "printed").read_text()


@pytest.mark.slow
def test_the_suite_prints_and_writes_what_the_page_says(folder):
    entries = json.loads((folder / "runs/sigmoid/evaluation.json").read_text())["evaluations"]
    (metrics,) = (entry["metrics"] for entry in entries if entry["suite"] == "spread")
    assert metrics == pytest.approx({name: float(value) for name, value in PRINTED}, abs=1e-3)
    assert re.search(r"^spread: rows 128, data \w+\n  text_head_std +0\.", (folder / "printed").read_text(), re.M)


@pytest.mark.slow
def test_the_reader_reads_in_worker_processes(folder):
    manifest = json.loads((folder / "data/verses/data.json").read_text())
    assert sum(split["documents"] for split in manifest["splits"].values()) == 3
    assert "readers.py" in json.loads((folder / "data/verses/job.json").read_text())["extensions"]


@pytest.mark.slow
def test_the_hook_logs_its_number(folder):
    lines = [json.loads(line) for line in (folder / "runs/watched/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("weight_norm", 0) > 0] == [10]
