"""How many of the package's files a reader comes to who follows imports from a file, wherever they stand in it.

    python benchmarks/imports.py
    python benchmarks/imports.py transfusion_jax.model.transformer --list

An import of a package counts its `__init__.py`, and the file that a name comes from is counted as well.
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "transfusion_jax"
STARTS = {  # by name, the files to follow imports from
    "the step": ("transfusion_jax.tasks.transfusion", "transfusion_jax.training.step.step"),
    "the loop": ("transfusion_jax.training.loop",),
    "transfusion train": ("transfusion_jax.commands.train",),
    "transfusion": ("transfusion_jax.cli",),
}
Graph = dict[str, set[str]]  # the modules that each module imports


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
    if arguments.json:
        print(json.dumps({name: {"imports": direct[name], "reaches": reached[name]} for name in starts}))
        return
    for name in starts:
        print(f"{name:<20} imports {direct[name]:3} of {len(found)} files, reaches {len(reached[name]):3}")
        if arguments.list:
            print("\n".join(f"  {module}" for module in reached[name]))


def graph() -> Graph:
    """The package's own imports."""
    modules = {
        ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    return {name: imports(path, set(modules)) - {name} for name, path in modules.items()}


def imports(path: Path, modules: set[str]) -> set[str]:
    """The modules of the package that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules


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


if __name__ == "__main__":
    main()
