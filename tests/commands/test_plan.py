import json
from pathlib import Path

from transfusion_jax import cli

PAPER = f"{Path(__file__).parents[2]}/configs/paper.py:0.37b"


def test_a_plan_in_json_for_a_machine_by_its_booking_name(capsys):
    arguments = ["plan", "--config", PAPER, "--topology", "v5p-128", "--json", "--analytic", "--config.steps=1000"]
    assert cli.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["topology"]["chips"], told["topology"]["name"]) == (64, "v5p:4x4x4")
    assert told["run"]["steps"] == 1000
    assert told["fits"]


def test_what_does_not_fit_or_is_no_machine_ends_with_two(capsys):
    assert cli.main(["plan", "--config", PAPER, "--topology", "v5e:1x1", "--analytic", "--config.mesh.fsdp=1"]) == 2
    assert "fits no mesh of v5e:1x1" in capsys.readouterr().err
    assert cli.main(["plan", "--config", PAPER, "--topology", "v5e:1x1", "--analytic", "--config.mesh.data=1"]) == 2
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert cli.main(["plan", "--config", PAPER, "--topology", "v9-8"]) == 2
    assert "unknown chip v9" in capsys.readouterr().err


def test_the_search_writes_the_best_as_overrides(capsys):
    assert cli.main(["plan", "--config", PAPER, "--topology", "h100:8x1", "--search", "--best", "1"]) == 0
    out = capsys.readouterr().out
    assert "ways to run it fit" in out
    assert "to run it: --config.mesh.data=" in out
