"""A command that is launched twice, and two commands that differ, on every target whose jobs have names."""

import pytest

from drills.process import ROOT
from transfusion_jax.cli import main

TPU = ["--topology=v5e:16x16", "--image=registry/image:1"]
TARGETS = {
    "slurm": (["slurm"], "runs"),
    "gke": (["gke", *TPU], "gs://bucket"),
    "tpu-vm": (["tpu-vm", *TPU, "--zone=us-west4-a"], "gs://bucket"),
}
CREATING = {"slurm": "sbatch", "gke": "apply", "tpu-vm": "create"}
CONFIG = ["--config", "configs/paper.py:7b", "--config.data.sources=synthetic"]
NAMED = ["--name=mine"]


@pytest.fixture(autouse=True)
def _in_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("first", "second", "differs"),
    [
        # options of the launcher, the workdir, words of the command; and what the second is refused for: "" where
        # it is a job of its own, None where it is the first
        (([], "a/run", []), ([], "a/run", []), None),
        (([], "a/run", []), ([], "a/run/", []), "a/run/"),  # the same place: one run at a time
        (([], "a/run", []), ([], "b/run", []), ""),
        (([], "a/run", []), ([], "a/RUN", []), ""),
        (([], "a/run", []), ([], "a/run", ["--config.steps=7"]), "--config.steps=7"),
        (([], "a/run", []), (["--env=MARK=1"], "a/run", []), "MARK"),
        ((NAMED, "a/run", []), (NAMED, "a/run", []), None),
        ((NAMED, "a/run", []), (NAMED, "b/run", []), "b/run"),
        ((NAMED, "a/run", []), (["--name=other"], "a/run", []), ""),
    ],
)
def test_what_is_launched_is_one_job_another_or_refused(standin, capsys, target, first, second, differs):
    launched = [launch(target, *one) for one in (first, second)]
    said = capsys.readouterr()
    created = standin.verbs().count(CREATING[target])
    if differs is None:
        assert (launched, created) == ([0, 0], 1)
        assert "is already there" in said.out
    elif differs:
        assert (launched, created) == ([0, 2], 1)
        assert "exists with another command or other machines; nothing was submitted" in said.err
        added = [line for line in said.err.splitlines() if line.startswith("  +")]
        assert any(differs in line for line in added), said.err
    else:
        assert (launched, created) == ([0, 0], 2)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("slurm", ["--nodes=2"]),
        ("slurm", ["--sbatch=--account=us"]),
        ("slurm", ["--logs=elsewhere"]),
        ("slurm", ["--restarts=3"]),
        *(("gke", [option]) for option in ("--spot", "--queue=ours", "--restarts=3", "--service-account=us")),
        *(("tpu-vm", [option]) for option in ("--spot", "--runtime=x", "--restarts=3", "--service-account=us@it")),
    ],
)
def test_a_job_that_differs_in_an_option_of_its_launcher_is_refused(standin, capsys, target, options):
    assert launch(target, [], "a/run", []) == 0
    assert launch(target, options, "a/run", []) == 2
    assert "nothing was submitted" in capsys.readouterr().err


def test_jobs_without_a_workdir_are_told_apart_by_their_words(standin):
    for words in (["prepare", "one"], ["prepare", "two"], ["prepare", "two"]):
        assert main(["launch", "slurm", "--", *words, "--output=data"]) == 0
    assert standin.verbs().count("sbatch") == 2


def launch(target, options, folder, words):
    launcher, root = TARGETS[target]
    return main(["launch", *launcher, *options, "--", "train", *CONFIG, "--workdir", f"{root}/{folder}", *words])
