"""How many of the package's files a reader comes to who follows imports from a file, wherever they stand in it.

Also, through how many the way goes from a command to the compiled step: the files on any chain of imports from the
one to the other.

    python benchmarks/imports.py
    python benchmarks/imports.py transfusion_jax.model.transformer --list

A name leads to the file that defines it, whatever file it was imported from. Imports inside functions count, and so
do files named in strings ("transfusion_jax.module:object"), but for those in the table of commands. What a run's
config chooses by name, such as a patch coder, is found in a folder and does not count.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "transfusion_jax"
STARTS = {  # by name, the files to follow imports from
    "the step": ("transfusion_jax.tasks.transfusion", "transfusion_jax.training.step.step"),
    "the loop": ("transfusion_jax.training.loop",),
    "transfusion train": ("transfusion_jax.commands.train",),
    "transfusion": ("transfusion_jax.cli",),
}
WAY = ("transfusion_jax.commands.train", "transfusion_jax.training.step.step")  # from the command to the step
COMMANDS = "transfusion_jax.cli"  # its table names a file for each command
Graph = dict[str, set[str]]  # the modules that each module imports
Trees = dict[str, ast.Module]  # the code of each module


def main() -> None:
    """Counts and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("module", nargs="*", help="where to begin (default: a few)")
    parser.add_argument("--list", action="store_true", help="print the modules, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found = graph()
    if unknown := [name for name in arguments.module if name not in found]:
        parser.error(f"there is no module {', '.join(unknown)}")
    starts = {name: (name,) for name in arguments.module} or STARTS
    reached = {name: sorted(reach(found, modules)) for name, modules in starts.items()}
    direct = {name: len(set().union(*(found[module] for module in modules))) for name, modules in starts.items()}
    passed = sorted(between(found, *WAY))
    if arguments.json:
        counts = {name: {"imports": direct[name], "reaches": reached[name]} for name in starts}
        print(json.dumps(counts | {"between": passed}))
        return
    for name in starts:
        print(f"{name:<20} imports {direct[name]:3} of {len(found)} files, reaches {len(reached[name]):3}")
        if arguments.list:
            print("\n".join(f"  {module}" for module in reached[name]))
    if not arguments.module:
        print(f"from transfusion train to the step: through {len(passed)} files")
        if arguments.list:
            print("\n".join(f"  {module}" for module in passed))


def graph() -> Graph:
    """The package's own imports."""
    files = {
        ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    trees = {name: ast.parse(path.read_text()) for name, path in files.items()}
    return {name: set(imports(name, trees)) - {name, PACKAGE.name} for name in trees}


def imports(module: str, trees: Trees) -> Iterator[str]:
    """The modules of the package that a module imports, or names in strings."""
    tree = trees[module]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name, called = f"{node.module}.{alias.name}", alias.asname or alias.name
                if name in trees:
                    yield from (origin(name, attribute, trees) for attribute in attributes(called, tree))
                    yield from [name] if not is_face(name, trees) else []
                elif node.module in trees:
                    yield origin(node.module, alias.name, trees)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in trees)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and module != COMMANDS:
            name = node.value.partition(":")[0]
            yield from [name] if name in trees and name != PACKAGE.name else []


def origin(module: str, name: str, trees: Trees) -> str:
    """The module that defines a name which another module has; a module itself where the name is one."""
    if f"{module}.{name}" in trees:
        return f"{module}.{name}"
    for node in trees[module].body:
        if isinstance(node, ast.ImportFrom) and node.module in trees:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return origin(node.module, alias.name, trees)
    return module


def attributes(name: str, tree: ast.Module) -> set[str]:
    """The attributes that are taken of a name."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == name}


def is_face(module: str, trees: Trees) -> bool:
    """Whether a module defines nothing, and only hands on what others define."""
    own = (ast.FunctionDef, ast.ClassDef)
    return not any(isinstance(node, own) for node in trees[module].body)


def reach(of: Graph, starts: tuple[str, ...]) -> set[str]:
    """All that is imported from some modules on, themselves included; not the package's own file."""
    reached: set[str] = set()
    ahead = list(starts)
    while ahead:
        module = ahead.pop()
        if module not in reached:
            reached.add(module)
            ahead += of[module]
    return reached - {PACKAGE.name}


def between(of: Graph, start: str, end: str) -> set[str]:
    """The modules on the ways from one to another, both included."""
    return {module for module in reach(of, (start,)) if end in reach(of, (module,))}


if __name__ == "__main__":
    main()
