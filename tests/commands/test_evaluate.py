"""`transfusion evaluate` on a small run of two checkpoints, on eight devices."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from helpers import begin_run, digits_config, edit_run, prepare, stand_in
from transfusion_jax.cli import main
from transfusion_jax.commands import evaluate
from transfusion_jax.config import SUITES, ConfigError, load
from transfusion_jax.data.datasets import load_data as load_data
from transfusion_jax.data.readers import shapes
from transfusion_jax.evaluation.protocols import PROTOCOLS, Protocol
from transfusion_jax.evaluation.suite import anything
from transfusion_jax.evaluation.suites import edits
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.checkpoint.reader import CheckpointReader
from transfusion_jax.training.facts import facts_of
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.step.state import RunContext, create_state

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "steps": 4,
    "batch_rows": 8,
    "model.latent_shape": (32, 32, 3),
    "model.patch_size": 16,
    "data.context_length": 160,
    "evaluation.rows": 8,
    "evaluation.images": 7,
    "evaluation.suites": ("loss", "shapes"),
    "sampling.steps": 2,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What a run leaves that was saved at steps 2 and 4, without the time that training takes."""
    workdir = Workdir(tmp_path_factory.mktemp("runs") / "run")
    config = load(f"{ROOT}/configs/debug.py", [f"{name}={value}" for name, value in OPTIONS.items()])
    data = load_data(config)
    workdir.begin(config, facts_of(make_task(config), config, data), data, "start")
    state = create_state(RunContext(make_task(config), config, make_mesh(config.mesh, jax.devices()[:1])))
    with Checkpoints(workdir.checkpoints, about=workdir.about()) as checkpoints:
        for step in (2, 4):
            checkpoints.save(replace(state, step=jnp.int32(step), ema=scaled(state.params, 1 + step)), 8 * step)
    return workdir.path


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_what_was_measured_is_kept_and_not_measured_again(workdir, capsys, monkeypatch):
    monkeypatch.setattr(edits, "_some_texts", lambda data: [shapes.SceneSet().example(0)[1]])
    first = evaluated(workdir, capsys)
    assert [(e["step"], e["weights"], e["suite"]) for e in first] == [(4, "ema", "loss"), (4, "ema", "shapes")]
    assert first == entries(workdir)
    assert first[0]["settings"].keys() == {"rows", "data", "version"}
    assert first[1]["settings"]["sampling"]["guidance"] == 2
    assert first[1]["settings"]["protocol"] is None
    assert set(first[1]["metrics"]) >= {"judge_accuracy", "generation_accuracy_position", "caption_parseable"}

    fake(monkeypatch, "loss", {"loss": 7.0})
    fake(monkeypatch, "shapes", {"generation_accuracy": 0.5})
    assert evaluated(workdir, capsys) == first
    other = evaluated(workdir, capsys, "--weights", "raw", "--suite", "loss")
    assert other[0]["checkpoint"] != first[0]["checkpoint"]
    assert other[0]["metrics"] == {"loss": 7.0}
    assert evaluated(workdir, capsys, "--suite", "loss", "--again")[0]["metrics"] == {"loss": 7.0}
    assert len(entries(workdir)) == 3


def test_what_an_earlier_version_drew_is_drawn_again(workdir, capsys, monkeypatch):
    fake(monkeypatch, "shapes", {"generation_accuracy": 0.5})
    (new,) = evaluated(workdir, capsys, "--suite", "shapes")
    old = copy.deepcopy(new)
    assert old["settings"]["sampling"].pop("spacing") == "trailing"
    (workdir / "evaluation.json").write_text(json.dumps({"evaluations": [old]}))
    fake(monkeypatch, "shapes", {"generation_accuracy": 0.75})
    (again,) = evaluated(workdir, capsys, "--suite", "shapes")
    assert again["metrics"] == {"generation_accuracy": 0.75}
    assert entries(workdir) == [old, again]


def test_a_suite_that_fails_leaves_those_before_it(workdir, capsys, monkeypatch):
    def fail(*arguments):
        raise ConfigError("no such digits")

    fake(monkeypatch, "loss", {"loss": 7.0})
    stand_in(monkeypatch, SUITES, "digits", replace(SUITES["digits"], run=fail, check=anything))
    assert main(["evaluate", "--workdir", str(workdir), "--suite", "loss", "--suite", "digits"]) == 2
    assert "no such digits" in capsys.readouterr().err
    assert [entry["suite"] for entry in entries(workdir)] == ["loss"]


@pytest.mark.parametrize(
    ("suite", "said"), [("digits", "needs captioned digits"), ("shapes", "asks for drawings of coloured shapes")]
)
def test_what_a_suite_lacks_is_said_before_anything_is_measured(workdir, capsys, suite, said):
    assert main(["evaluate", "--workdir", str(workdir), "--suite", "loss", "--suite", suite]) == 2
    assert said in capsys.readouterr().err
    assert not (workdir / "evaluation.json").exists()


def test_protocols_are_never_mixed(workdir, capsys, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "section-4.2", Protocol(5.0, 14, steps=3))
    fake(monkeypatch, "shapes", {"generation_accuracy": 0.5})
    (own,) = evaluated(workdir, capsys, "--suite", "shapes")
    (drawn,) = evaluated(workdir, capsys, "--protocol", "section-4.2")
    assert (drawn["settings"]["protocol"], drawn["settings"]["images"]) == ("section-4.2", 14)
    assert (drawn["settings"]["sampling"]["guidance"], drawn["settings"]["sampling"]["steps"]) == (5, 3)
    assert drawn["settings"]["prompts"] != own["settings"]["prompts"]
    assert entries(workdir) == [own, drawn]
    assert main(["evaluate", "--workdir", str(workdir), "--protocol", "section-4.3", "--suite", "loss"]) == 2
    assert "loss draws nothing" in capsys.readouterr().err


def test_the_papers_protocols():
    found = {name: (p.guidance, p.images, p.steps) for name, p in PROTOCOLS.items()}
    assert found == {"section-4.2": (5, 30_000, 250), "section-4.3": (3, 5_000, 250)}


def test_a_run_is_followed_to_its_last_step(workdir, capsys, monkeypatch):
    """The last checkpoint comes while it waits; another is deleted before it is reached."""
    fake(monkeypatch, "loss", {"loss": 7.0})
    checkpoints, aside = workdir / "checkpoints", workdir / "later"
    shutil.copytree(checkpoints / "2", checkpoints / "3")
    (checkpoints / "4").rename(aside)
    real = evaluate._Job.evaluate

    def measure(job, found, step):
        if step == 3:
            shutil.rmtree(checkpoints / "3")
        return real(job, found, step)

    monkeypatch.setattr(evaluate._Job, "evaluate", measure)
    monkeypatch.setattr(evaluate.time, "sleep", lambda seconds: aside.rename(checkpoints / "4"))
    assert main(["evaluate", "--workdir", str(workdir), "--suite", "loss", "--follow", "--json"]) == 0
    output = capsys.readouterr()
    assert [json.loads(line)["evaluations"][0]["step"] for line in output.out.splitlines()] == [2, 4]
    assert "step 3 was deleted before it could be evaluated" in output.err
    assert [entry["step"] for entry in entries(workdir)] == [2, 4]


@pytest.mark.parametrize(
    ("command", "guidance", "said"),
    [
        (["sample", "--prompt", "a red circle", "--output", "a.png"], [], True),
        (["sample", "--prompt", "a red circle", "--follow", "text", "--max-tokens", "1"], [], False),
        (["evaluate", "--suite", "shapes"], [], True),
        (["evaluate", "--suite", "loss"], [], False),
        (["train", "--dry-run"], [], True),
        (["train", "--dry-run"], ["--config.sampling.guidance=1"], False),
    ],
)
def test_guidance_without_its_other_branch_is_said(workdir, capsys, monkeypatch, tmp_path, command, guidance, said):
    """The run's config is edited: nothing that is trained is looked at."""
    for name in ("loss", "shapes"):
        fake(monkeypatch, name, {"loss": 7.0})
    monkeypatch.chdir(tmp_path)
    values = json.loads((workdir / "config.json").read_text())
    values["data"] |= dict(caption_dropout=0.0, image_first=0.0)
    edit_run(workdir, values)
    assert main([*command, *guidance, "--workdir", str(workdir)]) == 0
    output = capsys.readouterr()
    assert ("and this run has none at all" in output.out + output.err) == said


COMMANDS = {
    "evaluate": ["evaluate", "--suite", "loss"],
    "sample": ["sample", "--prompt", "a red circle", "--follow", "text", "--max-tokens", "1"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_the_newest_checkpoint_that_its_run_keeps(workdir, capsys, monkeypatch, command):
    """The run deletes the one that was the newest when the command looked, and the one that is named."""
    fake(monkeypatch, "loss", {"loss": 7.0})
    real = Checkpoints.manifest

    def manifest(checkpoints, step):
        if step == 4:
            shutil.rmtree(workdir / "checkpoints/4", ignore_errors=True)
        return real(checkpoints, step)

    monkeypatch.setattr(CheckpointReader, "manifest", manifest)
    kept = shutil.copytree(workdir / "checkpoints/4", workdir / "kept")
    assert main([*COMMANDS[command], "--workdir", str(workdir)]) == 0
    assert "step 2 of" in capsys.readouterr().out
    kept.rename(workdir / "checkpoints/4")
    assert main([*COMMANDS[command], "--workdir", str(workdir), "--step", "4"]) == 2
    assert "checkpoint 4 was deleted by its run while it was read: read another" in capsys.readouterr().err
    assert not (workdir / "aside").exists()


def test_following_leaves_no_choice_of_a_step(workdir, capsys):
    assert main(["evaluate", "--workdir", str(workdir), "--follow", "--step", "2"]) == 2
    assert "leave --step out" in capsys.readouterr().err


def test_a_table_names_the_settings(workdir, capsys, monkeypatch):
    fake(monkeypatch, "shapes", {"generation_accuracy": 0.5})
    assert main(["evaluate", "--workdir", str(workdir), "--suite", "shapes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if line.startswith("shapes: images 7"))
    assert "guidance 2.0" in header
    assert "prompts " in header
    assert "  generation_accuracy   0.5000" in lines


def test_a_source_that_holds_nothing_out_is_named(digits_folder, tmp_path, capsys, monkeypatch):
    prepare(tmp_path / "whole", ["digits"], channels=1)
    sources = {"parted": {"path": str(digits_folder)}, "whole": {"path": str(tmp_path / "whole")}}
    begin_run(tmp_path / "run", digits_config(digits_folder, data__sources=sources, optimizer__ema_decay=0.0))
    fake(monkeypatch, "loss", {"loss": 7.0})
    capsys.readouterr()
    assert main(["evaluate", "--workdir", str(tmp_path / "run"), "--suite", "loss"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "holds nothing out" in line]
    assert lines == ["whole holds nothing out: nothing of it is measured"]


def test_numbers_of_an_earlier_version_of_a_suite_are_measured_anew(workdir, capsys, monkeypatch):
    fake(monkeypatch, "loss", {"loss": 7.0})
    evaluated(workdir, capsys, "--suite", "loss")
    stand_in(monkeypatch, SUITES, "loss", replace(SUITES["loss"], run=lambda *_: {"loss": 6.0}, version=9))
    assert evaluated(workdir, capsys, "--suite", "loss")[0]["metrics"] == {"loss": 6.0}
    assert [entry["metrics"]["loss"] for entry in entries(workdir)] == [7.0, 6.0]


def test_a_suite_that_finds_nothing_to_measure_says_so(workdir, capsys, monkeypatch):
    fake(monkeypatch, "images", {})
    assert main(["evaluate", "--workdir", str(workdir), "--suite", "images"]) == 0
    assert "  nothing: no held-out row has any" in capsys.readouterr().out.splitlines()
    assert entries(workdir)[0]["metrics"] == {}


@pytest.mark.slow
def test_two_processes_measure_what_one_does(workdir, tmp_path, capsys):
    other = shutil.copytree(workdir, tmp_path / "other")
    command = [sys.executable, "-m", "transfusion_jax.cli"]
    launch = ["launch", "local", "--processes", "2", "--devices-per-process", "2", "--"]
    suite = ["--suite", "loss"]
    done = subprocess.run([*command, *launch, "evaluate", "--workdir", str(other), *suite], cwd=ROOT, timeout=600)
    assert done.returncode == 0
    together, alone = entries(other), evaluated(workdir, capsys, *suite)
    assert [without_metrics(entry) for entry in together] == [without_metrics(entry) for entry in alone]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-4)


def without_metrics(entry):
    return {name: value for name, value in entry.items() if name != "metrics"}


def scaled(params, factor):
    return jax.tree.map(lambda leaf: factor * leaf, params)


def evaluated(workdir, capsys, *options):
    assert main(["evaluate", "--workdir", str(workdir), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)["evaluations"]


def entries(workdir):
    return json.loads((workdir / "evaluation.json").read_text())["evaluations"]


def fake(monkeypatch, name, metrics):
    """A suite that measures nothing and says this."""
    stand_in(monkeypatch, SUITES, name, replace(SUITES[name], run=lambda *arguments: metrics, check=anything))
