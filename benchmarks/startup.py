"""CPU seconds until a command can begin: for help and mistakes, and for importing what runs it.

    python benchmarks/startup.py
    python benchmarks/startup.py --beside REVISION   # of another revision of this repository as well, in turn

Every measurement is a process of its own, and counts the seconds of all cores. The median of the rounds is printed.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import harness
from transfusion_jax.cli import COMMANDS

ROOT = Path(__file__).parents[1]
MODULES = {"scale": "scale.study"}  # of commands with several, one
CALLS = {
    "transfusion --help": ["-m", "transfusion_jax.cli", "--help"],
    "transfusion --version": ["-m", "transfusion_jax.cli", "--version"],
    "transfusion train --confg": ["-m", "transfusion_jax.cli", "train", "--confg", "x"],
    "import transfusion_jax": ["-c", "import transfusion_jax"],
    **{
        f"import of {name}": ["-c", f"import transfusion_jax.commands.{MODULES.get(name, name)}"]
        for name in COMMANDS
    },
}
Seconds = dict[str, dict[str, float]]  # by call, and by tree


def main() -> None:
    """Measures and prints."""
    parser = harness.parser(__doc__)
    parser.add_argument("--beside", metavar="REVISION", help="also measure this revision, and print the ratio")
    arguments = parser.parse_args()
    with beside(arguments.beside) as trees:
        seconds: Seconds = {name: measure(call, trees, arguments.rounds) for name, call in CALLS.items()}
    harness.deliver({"rounds": arguments.rounds, "seconds": seconds}, table(seconds), arguments.json)


@contextmanager
def beside(revision: str | None) -> Iterator[dict[str, Path]]:
    """This tree, and one of the revision where one is named."""
    if revision is None:
        yield {"here": ROOT}
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git("worktree", "add", "--quiet", "--detach", str(tree), revision)
        try:
            yield {"here": ROOT, revision: tree}
        finally:
            git("worktree", "remove", "--force", str(tree))


def git(*words: str) -> None:
    """Runs git on this repository; what is wrong is printed by git."""
    subprocess.run(["git", "-C", str(ROOT), *words], check=True)


def measure(call: list[str], trees: dict[str, Path], rounds: int) -> dict[str, float]:
    """The median of CPU seconds in each tree, measured in turn; the first of each is not counted."""
    found: dict[str, list[float]] = {name: [] for name in trees}
    for _ in range(rounds + 1):
        for name, tree in trees.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run = [sys.executable, *call]
            subprocess.run(run, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            found[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def table(seconds: Seconds) -> str:
    """A line for each call."""
    lines = []
    for name, of in seconds.items():
        here, *other = of.values()
        ratio = f"  {other[0]:6.2f} s there  {here / other[0]:6.1%}" if other else ""
        lines.append(f"{name:<28}{here:6.2f} s{ratio}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
