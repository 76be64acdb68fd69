"""Imports run downwards only, and not far: a room of the package knows those before it in the list alone."""

import ast
from pathlib import Path

import pytest

import imports
import transfusion_jax

PACKAGE = Path(transfusion_jax.__file__).parent
ASKED_OF_ALL = (  # by a table of choices, of commands, or of places to launch on
    *("run", "declare", "launch", "hook", "attention", "PatchCoder", "from_name", "read", "shards", "check"),
    *("cosine", "linear", "none"),  # names in a config
)
LAYERS = (
    "errors",
    "config",
    "worlds",
    "kernels",
    "parallel",
    "storage",
    "model",
    "diffusion",
    "flops",
    "autoencoder",
    "data",
    "tasks",
    "training",
    "generation",
    "conversion",
    "evaluation",
    "planning",
    "launching",
    "scaling",
    "serving",
    "commands",
    "cli",
)


def test_no_import_runs_upwards():
    places = {room: place for place, room in enumerate(LAYERS)}
    upwards = [
        f"{path.relative_to(PACKAGE)}:{line} imports {room}"
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE or path.stem != "__init__"
        for line, room in imported_rooms(path)
        if places[room] > places[path.relative_to(PACKAGE).with_suffix("").parts[0]]
    ]
    assert upwards == []


def imported_rooms(path):
    """The rooms that a file imports from, wherever the import stands in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            if package == "transfusion_jax" and room in LAYERS:  # the rest stands in the package's own file
                yield node.lineno, room


@pytest.mark.parametrize(("way", "most"), [("the step", 25), ("the loop", 45), ("transfusion train", 90)])
def test_a_reader_comes_to_few_files(way, most):
    assert len(imports.reach(imports.graph(), imports.STARTS[way])) <= most


def test_the_loop_is_the_loop_alone():
    assert len(imports.graph()["transfusion_jax.training.loop"]) <= 12


def test_the_way_from_the_command_to_the_step_is_short():
    assert len(imports.between(imports.graph(), *imports.WAY)) <= 25


def test_no_two_classes_or_public_functions_share_a_name():
    """But for what a table asks of each of its files, such as a command's `run` or a reader's `read`."""
    places = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    shared = {name: files for name, files in places.items() if len(files) > 1 and name not in ASKED_OF_ALL}
    assert shared == {}
