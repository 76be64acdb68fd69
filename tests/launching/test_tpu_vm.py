"""`transfusion launch tpu-vm`: the script that the machines run, and what is there already."""

import json
import subprocess

import pytest

from drills.process import ROOT
from launching.shell import assert_sound
from transfusion_jax.cli import main

TRAIN = [
    "--",
    "train",
    "--config",
    "configs/paper.py:7b",
    "--config.data.sources=synthetic",
    "--workdir",
    "gs://bucket/run",
]
VM = ["launch", "tpu-vm", "--topology=v5e:16x16", "--image=registry/image:1", "--zone=us-west4-a"]


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    "options", [[], ["--spot", "--slices=2", "--env=A=it's; $(here)", "--env=B=", "--project=p"]]
)
def test_what_is_printed_is_sound_shell_and_so_is_what_it_writes(options, tmp_path, capsys):
    assert main([*VM, *options, "--dry-run", *TRAIN]) == 0
    printed = capsys.readouterr().out
    scripts = {"printed": printed, "startup": between(printed, "STARTUP"), "job": between(printed, "JOB")}
    for name, text in scripts.items():
        path = tmp_path / name
        path.write_text(text)
        assert_sound(path)


def test_the_container_gets_the_command_and_variables_word_by_word(tmp_path, capsys):
    assert main([*VM, "--env=A=it's; $(here)", "--dry-run", *TRAIN]) == 0
    job = tmp_path / "job"
    job.write_text(between(capsys.readouterr().out, "JOB"))
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\n[ "$1" = rm ] || printf "%s\\n" "$@"\n')
    docker.chmod(0o755)
    ran = subprocess.run(["bash", job], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, text=True, capture_output=True)
    words = ran.stdout.splitlines()
    assert words[words.index("--env") + 1] == "A=it's; $(here)"
    assert words[words.index("registry/image:1") + 1 :] == ["transfusion", *TRAIN[1:]]


def test_the_service_follows_the_exit_codes(capsys):
    assert main([*VM, "--restarts=5", "--grace=77", "--dry-run", *TRAIN]) == 0
    unit = between(capsys.readouterr().out, "UNIT").splitlines()
    for line in ("Restart=on-failure", "RestartPreventExitStatus=2 3 74", "StartLimitBurst=6", "TimeoutStopSec=77"):
        assert line in unit


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        (
            ["--topology=v5p:4x4x4"],
            ["--accelerator-type=v5p-128", "--node-id=train-run-e69e69"],
            ["--spot", "--node-count"],
        ),
        (["--topology=v6e-256", "--spot"], ["--accelerator-type=v6e-256", "--spot"], ["--reserved"]),
        (
            ["--slices=2", "--reserved"],
            ["--node-count=2", "--node-prefix=train-run-e69e69", "--reserved"],
            ["--node-id"],
        ),
        (["--runtime=x", "--service-account=a@b"], ["--runtime-version=x", "--service-account=a@b"], []),
    ],
)
def test_what_is_asked_for(options, present, absent, capsys):
    assert main([*VM, *options, "--dry-run", *TRAIN]) == 0
    create = capsys.readouterr().out.splitlines()[-1]
    assert all(f" {option}" in create for option in present)
    assert not any(f" {option}" in create for option in absent)


def test_the_same_command_again_queues_only_what_is_gone(standin, capsys):
    assert main([*VM, *TRAIN]) == 0
    assert "queued train-run-e69e69: v5e:16x16" in capsys.readouterr().out
    assert standin.verbs() == ["describe", "create"]
    (booked,) = standin.folder.glob("job-*")
    node = json.loads(booked.read_text())["tpu"]["nodeSpec"][0]["node"]
    assert node["metadata"]["startup-script"].startswith("#!/usr/bin/env bash\n")
    assert main([*VM, *TRAIN]) == 0
    assert "train-run-e69e69 is already there, ACTIVE; nothing was queued" in capsys.readouterr().out
    assert standin.verbs() == ["describe"]
    assert main([*VM, "--spot", "--env=A=1", *TRAIN]) == 2
    assert "choose --name, or end it" in capsys.readouterr().err
    standin.verbs()

    for state in ("SUSPENDED", "FAILED"):
        standin.change(lambda about, state=state: about.update(state={"state": state}))
        assert main([*VM, *TRAIN]) == 0
        assert f"train-run-e69e69 is {state}: it is deleted and queued again" in capsys.readouterr().out
        assert standin.verbs() == ["describe", "delete", "create"]
    standin.change(lambda about: about.update(state={"state": "SUSPENDING"}))
    assert main([*VM, *TRAIN]) == 2
    assert "is SUSPENDING: run the same command once that is done" in capsys.readouterr().err


def test_a_service_that_does_not_answer_is_one_sentence(standin, capsys):
    standin.break_down()
    assert main([*VM, *TRAIN]) == 2
    assert capsys.readouterr().err == "transfusion: gcloud failed: ERROR: the service is not there\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*VM, *TRAIN], "this machine has no gcloud: install the Google Cloud CLI"),
        ([*VM, *TRAIN[:-1], "runs/here"], "train needs --workdir gs://BUCKET/FOLDER"),
        ([*VM, "--env=A=1\n2", *TRAIN], "--env A must be one line"),
    ],
)
def test_what_cannot_be_launched_is_one_sentence(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def between(text, mark):
    """What stands in the here-document of that mark."""
    return text.partition(f"<<'{mark}'\n")[2].partition(f"\n{mark}\n")[0] + "\n"
