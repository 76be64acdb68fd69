"""What is launched, read from its command."""

import argparse
import json

import pytest

from drills.process import ROOT
from transfusion_jax import config as configs
from transfusion_jax.commands.flags.launch import add_job, add_name
from transfusion_jax.config import ConfigError
from transfusion_jax.launching.grace import UNKNOWN, grace_seconds
from transfusion_jax.launching.job import make_job, option, require_bucket
from transfusion_jax.storage.atomic import write_json


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--workdir", "a"], "a"),
        (["--workdir=a=b"], "a=b"),
        (["--workdir=a", "--workdir", "b"], "b"),
        (["--workdirs=a", "x--workdir"], None),
        (["--workdir"], None),
    ],
)
def test_an_option_s_value_is_found_as_argparse_finds_it(words, value):
    assert option(words, "--workdir") == value


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["train", "--workdir", "gs://bucket/runs/My_Run.7/"], "train-my-run-7-4246f1"),
        (["train", "--workdir", "/runs/My_Run.7"], "train-my-run-7-73ee94"),
        (["evaluate", "--workdir", "/runs/" + 60 * "a"], "evaluate-" + 24 * "a" + "-c19c6f"),
        (["prepare", "x"], "prepare-ac06a9"),
    ],
)
def test_a_name_comes_from_the_command_and_its_workdir(command, name):
    assert make_job(parsed(command), hosts=1).name == name


def test_a_run_s_own_config_is_taken_where_the_command_names_none(tmp_path):
    command = ["train", "--workdir", str(tmp_path)]
    assert make_job(parsed(command), hosts=1).grace == UNKNOWN
    config = configs.load(str(ROOT / "configs/paper.py:0.37b"), ["data.sources=synthetic"])
    (tmp_path / "config.json").write_text(json.dumps(configs.to_dict(config)))
    write_json(tmp_path / "manifest.json", {"history": [{"event": "start"}], "codec": {}, "skip_rows": []})
    assert make_job(parsed(command), hosts=1).grace == grace_seconds(config, 1)
    assert make_job(parsed([*command, "--config.optimizer.ema_decay=0.9"]), 1).grace > grace_seconds(config, 1)


def test_an_autoencoder_s_config_is_read_before_anything_is_booked():
    command = [
        "autoencoder",
        "train",
        "--workdir",
        "runs/kl",
        "--config",
        str(ROOT / "configs/autoencoder.py:kl,small"),
    ]
    assert make_job(parsed(command), hosts=1).grace == UNKNOWN
    with pytest.raises(ConfigError, match="steps"):
        make_job(parsed([*command, "--config.steps=0"]), hosts=1)
    with pytest.raises(ConfigError, match="gs://"):
        require_bucket(make_job(parsed(command), hosts=1), "TPU VMs")


def test_a_job_that_differs_in_anything_has_another_fingerprint():
    jobs = [
        make_job(parsed(["prepare", "x"]), 1),
        make_job(parsed(["prepare", "y"]), 1),
        make_job(parsed(["prepare", "x"], "--env", "A=1"), 1),
        make_job(parsed(["prepare", "x"], "--grace", "9"), 1),
    ]
    assert len({job.fingerprint() for job in jobs} | {jobs[0].fingerprint(image="i")}) == len(jobs) + 1
    assert jobs[0].fingerprint() == make_job(parsed(["prepare", "x"]), 1).fingerprint()


def test_a_config_with_a_mistake_is_none(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match="names no data"):
        make_job(parsed(["train", "--config", "configs/paper.py:7b"]), hosts=1)


def parsed(command, *options):
    """The arguments that a target's parser gives."""
    parser = argparse.ArgumentParser()
    add_name(parser)
    add_job(parser, restarts=0)
    arguments = parser.parse_args(options)
    arguments.command = command
    return arguments
