"""Help and mistakes are answered before anything heavy is imported."""

import argparse
import inspect
import json
import subprocess
import sys
from importlib import import_module

import pytest

from transfusion_jax import cli

HEAVY = ("jax", "numpy", "scipy", "torch", "tensorstore", "PIL", "flax")
ASK = """
import contextlib, io, json, sys
from transfusion_jax.cli import COMMANDS, main
lines = [["--help"], ["--version"], ["trian"], *([name, "--help"] for name in COMMANDS)]
lines += [[name, "--confg", "x"] for name in COMMANDS]
codes = []
for line in lines:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            codes.append(main(line))
        except SystemExit as error:
            codes.append(error.code)
print(json.dumps([codes, sorted(sys.modules)]))
"""


def test_nothing_heavy_is_imported_for_help_or_a_mistake():
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    codes, modules = json.loads(done.stdout)
    count = len(cli.COMMANDS)
    assert codes == [0, 0, 2, *[0] * count, *[2] * count]
    assert not set(HEAVY) & set(modules)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --confg configs/debug.py", "train does not take --confg: did you mean --config?"),
        ("train --confg=configs/debug.py", "train does not take --confg: did you mean --config?"),
        ("train configs/debug.py", "train does not take configs/debug.py: see transfusion train --help"),
        ("scale fit --points paper --bootstraps 3", "scale does not take --bootstraps: did you mean --bootstrap?"),
        ("launch local -- train --workdirs runs/a", "train does not take --workdirs: did you mean --workdir?"),
    ],
)
def test_the_nearest_option_is_named(words, said, capsys):
    assert cli.main(words.split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_names_a_function_that_runs_it(name):
    parser = argparse.ArgumentParser()
    import_module(f"transfusion_jax.commands.flags.{name}").declare(parser)
    named = list(runs(parser))
    assert named
    for run in named:
        module, _, function = run.partition(":")
        found = getattr(import_module(f"transfusion_jax.commands.{module}"), function)
        assert list(inspect.signature(found).parameters) == ["arguments", "overrides"]


def runs(parser):
    """What runs a command and its parts."""
    if run := parser.get_default("run"):
        yield run
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from runs(part)
