"""Runs, checkpoints, prepared folders and configs that an earlier version wrote still load and go on as they would.

`tests/stored/*.tar.xz` were written by that version's own commands: a run on digits and one of an autoencoder, each
stopped at step 2 of 4; the digits prepared, without latents and with; the configs of every recipe; and the numbers
of steps 3 and 4, trained by that version.
"""

import json
import tarfile
from pathlib import Path

import pytest

from transfusion_jax import config as configs
from transfusion_jax.cli import main

STORED = sorted((Path(__file__).parent / "stored").glob("*.tar.xz"))


@pytest.fixture(params=STORED, ids=lambda path: path.name.partition(".")[0])
def here(request, tmp_path, monkeypatch):
    """The folder that the commands were given in: the runs name their data relative to it."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("run", "train"),
    [
        pytest.param("run", ["train"], id="model"),
        pytest.param("ae", ["autoencoder", "train"], id="autoencoder", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_as_it_would_have(here, run, train):
    assert main([*train, "--workdir", run]) == 0
    lines = [json.loads(line) for line in (here / run / "metrics.jsonl").read_text().splitlines()]
    went_on = [line for line in lines if line["step"] > 2]
    for line, expected in zip(went_on, json.loads((here / "expected.json").read_text())[run], strict=True):
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_a_new_run_begins_with_its_weights_whether_images_have_one_size_or_several(here, capsys):
    same = "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config(arg=''):\n"
    (here / "same.py").write_text(f"{same}    return ConfigDict(json.load(open('run/config.json')))\n")
    losses = []
    for name, fields in (("one", []), ("several", ["--config.model.max_side=16"])):
        words = [
            "train",
            "--config",
            "same.py",
            "--init-from",
            "run",
            "--workdir",
            name,
            "--config.loop.log_every=1",
        ]
        assert main([*words, "--config.loop.stop_at=1", *fields]) == 0
        assert "weights of run, step 2" in capsys.readouterr().out
        losses.append(json.loads((here / name / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_checkpoint_is_measured_as_it_was(here, capsys):
    kept = json.loads((here / "run/evaluation.json").read_text())["evaluations"][0]
    assert main(["evaluate", "--workdir", "run", "--step", str(kept["step"]), "--again", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["evaluations"][0]
    assert again["metrics"] == pytest.approx(kept["metrics"], rel=1e-4)
    assert again["settings"] == kept["settings"]


@pytest.mark.parametrize("folder", ["digits", "latents"])
def test_nothing_is_wrong_with_what_was_prepared(here, folder):
    assert main(["doctor", folder, "--verify"]) == 0


def test_the_configs_of_every_recipe_parse(here):
    for path in (here / "configs").glob("*.json"):
        values = json.loads(path.read_text())
        now = configs.to_dict(configs.parse_run(values))
        assert contained(values, now), path.name


def contained(part, whole):
    """Whether every field of one has the same value in the other, which may have more of them."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(name in whole and contained(value, whole[name]) for name, value in part.items())
    return part == whole
