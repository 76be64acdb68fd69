"""CPU seconds that the tests take, beside those of another revision, or the package's lines that they execute.

    python benchmarks/suite.py test
    python benchmarks/suite.py test test-slow drill --beside main
    python benchmarks/suite.py test --beside main --lines

Each target of the Makefile is made here, and then in a checkout of REV, with the virtual environment of this
Python; nothing is installed.

Seconds are user and system time of pytest and of all processes that it or a test has started, by the file of the
test that waited for them; "start and collect" is the rest. They hardly depend on how many cores there are, and
somewhat on what else keeps the machine busy: compare what one call has printed.

`--lines` (pip install coverage) lists the lines of the package that REV's tests execute and this tree's do not.
Lines are the same where `difflib` matches them, or where they have moved to with their neighbours. A process that
is killed tells nothing, in either tree.

The exit code is 0, or 1 where a test failed or a line was lost.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import difflib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import harness
from same import ROOT, Tree, commit_of, trees
from suite_probe import FOLDER, cpu_seconds

TARGETS = ("test", "test-slow", "drill")
INSTALLED = ("cpu", "test", "parity")  # files in the virtual environment by which the Makefile knows
PACKAGE = "transfusion_jax"
SUBREAPER = 36  # of linux/prctl.h
COVERAGE = """[run]
source = {source}
data_file = {data}
parallel = true
patch = subprocess, _exit, fork
"""

Lines = Mapping[str, frozenset[int]]  # by the file's path in the tree
Texts = Mapping[str, Sequence[str]]  # the lines of files, by their paths in the tree
Window = tuple[str, str, str]  # a line between its neighbours
Place = tuple[str, int]  # a file's path in the tree, and the number of a line


@dataclass(frozen=True)
class Files:
    """What the tests of one target took in one tree."""

    passed: bool
    seconds: float
    tests: int
    by_file: Mapping[str, float]


def main() -> None:
    """Runs the tests, prints, and exits with the code that the module's text names."""
    parser = harness.parser(__doc__, timed=False)
    parser.add_argument("targets", nargs="+", choices=TARGETS, help="of the Makefile")
    parser.add_argument("--beside", metavar="REV", help="a commit, branch or tag to compare this working tree with")
    parser.add_argument("--lines", action="store_true", help="compare executed lines, not seconds; needs --beside")
    parser.add_argument(
        "--files", type=int, default=20, help="how many files the table names (default: %(default)s)"
    )
    arguments = parser.parse_args()
    commit = commit_of(arguments.beside or "HEAD")
    if commit is None:
        parser.error(f"there is no revision {arguments.beside!r} in {ROOT}: name a commit, a branch or a tag")
    if arguments.lines and arguments.beside is None:
        parser.error("--lines compares with another revision: add --beside REV")
    if arguments.lines and importlib.util.find_spec("coverage") is None:
        parser.error("coverage is not installed: pip install coverage")
    ctypes.CDLL(None).prctl(SUBREAPER, 1)  # processes that outlive their parents become this one's children
    with trees(arguments.beside or "HEAD", commit) as both:
        compared = both if arguments.beside else both[:1]
        if arguments.lines:
            result, text, good = compare_lines(compared, arguments.targets)
        else:
            result, text, good = compare_seconds(compared, arguments.targets, arguments.files)
    report = {"revision": commit, "machine": harness.machine(), **result}
    harness.deliver(report, text, arguments.json)
    sys.exit(0 if good else 1)


def compare_seconds(both: Sequence[Tree], targets: Sequence[str], shown: int) -> tuple[dict, str, bool]:
    """The seconds of each target in each tree; the same as text; whether all tests passed."""
    found = {target: {tree.name: measure(tree, target) for tree in both} for target in targets}
    text = "\n\n".join(seconds_table(target, by_tree, shown) for target, by_tree in found.items())
    result = {target: {name: asdict(files) for name, files in by_tree.items()} for target, by_tree in found.items()}
    return {"seconds": result}, text, all(f.passed for by_tree in found.values() for f in by_tree.values())


def compare_lines(both: Sequence[Tree], targets: Sequence[str]) -> tuple[dict, str, bool]:
    """The package's lines that only the other tree's tests execute; the same as text; whether there are none."""
    this, other = (executed(tree, targets) for tree in both)
    lost = lost_lines(this, other, *(tree.code for tree in both))
    counts = {tree.name: sum(map(len, lines.values())) for tree, lines in zip(both, (this, other), strict=True)}
    title = ", ".join(f"{count} lines executed by {name}" for name, count in counts.items())
    text = [f"{title}, {len(lost)} of them by that alone", *(f"{place}: {line}" for place, line in lost.items())]
    return {"executed": counts, "lost": lost}, "\n".join(text), not lost


def measure(tree: Tree, target: str) -> Files:
    """Makes the target, and adds up its seconds."""
    begin = cpu_seconds()
    with tempfile.TemporaryDirectory(dir=tree.work) as folder:
        passed = make(tree, target, "-p suite_probe", {FOLDER: folder})
        seconds = cpu_seconds() - begin
        by_file: collections.Counter[str] = collections.Counter()
        tests = 0
        for path in Path(folder).iterdir():
            for line in path.read_text().splitlines():
                name, used = json.loads(line)
                by_file[name] += used
                tests += 1
    return Files(passed, seconds, tests, {**by_file, "start and collect": seconds - by_file.total()})


def make(tree: Tree, target: str, options: str, environment: Mapping[str, str]) -> bool:
    """Makes a target without installing anything, with options for pytest; whether its tests passed."""
    words = ["make", "--no-print-directory", "--old-file=wanted", f"VENV={installed(tree.work)}", target]
    path = os.pathsep.join([str(tree.code), str(ROOT / "benchmarks")])
    options = f"{os.environ.get('PYTEST_ADDOPTS', '')} {options} -p no:cacheprovider"
    own = {"PYTHONPATH": path, "PYTEST_ADDOPTS": options, **environment}
    print(f"=== make {target} in {tree.name}", file=sys.stderr, flush=True)
    process, ended, status = (
        subprocess.Popen(words, cwd=tree.code, env={**os.environ, **own}, stdout=sys.stderr),
        0,
        0,
    )
    while ended != process.pid:  # what outlives its parent is this one's child, and a zombie until it is waited for
        ended, status = os.waitpid(-1, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    return process.returncode == 0


def installed(folder: Path) -> Path:
    """A virtual environment in which the Makefile finds everything installed: this Python's programs."""
    venv = folder / "venv"
    if not venv.is_dir():
        venv.mkdir()
        (venv / "bin").symlink_to(Path(sys.prefix) / "bin")
        for name in INSTALLED:
            (venv / name).touch()
    return venv


def seconds_table(target: str, by_tree: Mapping[str, Files], shown: int) -> str:
    """The files that take longest in any tree, and the sums."""
    largest: dict[str, float] = {}
    for files in by_tree.values():
        for name, used in files.by_file.items():
            largest[name] = max(used, largest.get(name, 0.0))
    names = sorted(largest, key=lambda name: -largest[name])
    rows = [(f"make {target}", *by_tree)]
    rows += [
        (name, *(f"{files.by_file.get(name, 0.0):.1f}" for files in by_tree.values())) for name in names[:shown]
    ]
    others = (sum(files.by_file.get(name, 0.0) for name in names[shown:]) for files in by_tree.values())
    rows += [(f"{max(0, len(names) - shown)} others", *(f"{used:.1f}" for used in others))]
    rows += [("CPU seconds", *(f"{files.seconds:.1f}" for files in by_tree.values()))]
    rows += [("tests", *(f"{files.tests}{'' if files.passed else ', failed'}" for files in by_tree.values()))]
    lines = harness.align(rows)
    if len(by_tree) == 2:
        this, other = (files.seconds for files in by_tree.values())
        lines.append(f"{this / other:.0%} of the CPU seconds of {list(by_tree)[1]}")
    return "\n".join(lines)


def executed(tree: Tree, targets: Sequence[str]) -> Lines:
    """The lines of the package that any process of the targets has executed."""
    import coverage  # not above: seconds are measured without it

    with tempfile.TemporaryDirectory(dir=tree.work) as folder:
        settings, data = Path(folder) / "coveragerc", Path(folder) / "data"
        settings.write_text(COVERAGE.format(source=tree.code / PACKAGE, data=data))
        for target in targets:
            make(tree, target, "", {"COVERAGE_PROCESS_START": str(settings)})
        merged = coverage.Coverage(data_file=str(data), config_file=str(settings))
        merged.combine([folder])
        found = merged.get_data()
        paths = [Path(name) for name in found.measured_files()]
        return {str(p.relative_to(tree.code)): frozenset(found.lines(str(p)) or ()) for p in paths}


def lost_lines(this: Lines, other: Lines, here: Path, there: Path) -> dict[str, str]:
    """Lines that are in both trees and were executed in the other one alone, by "file:number" here."""
    texts = {str(path.relative_to(here)): path.read_text().splitlines() for path in here.glob(f"{PACKAGE}/**/*.py")}
    moved = places_by_window(texts)
    lost = {}
    for name in sorted(other):
        old = (there / name).read_text().splitlines()
        for number, (place, new) in matches(name, old, texts, moved).items():
            if number in other[name] and new not in this.get(place, ()):
                lost[f"{place}:{new}"] = texts[place][new - 1].strip()
    return lost


def matches(name: str, old: Sequence[str], texts: Texts, moved: Mapping[Window, list[Place]]) -> dict[int, Place]:
    """By the number of a line in a file of the other tree, where the same line is in this tree.

    It is in the file of the same name, where `difflib` matches it, or else where the same three lines, its
    neighbours and itself, are in one place of the package alone: lines move between files.
    """
    found: dict[int, Place] = {}
    new = texts.get(name, ())
    for block in difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        found |= {block.a + k + 1: (name, block.b + k + 1) for k in range(block.size)}
    for number, window in enumerate(windows(old), 1):
        if number not in found and len(moved.get(window, ())) == 1:
            found[number] = moved[window][0]
    return found


def places_by_window(texts: Texts) -> dict[Window, list[Place]]:
    """Files and numbers of the lines that have the same neighbours and text."""
    places: dict[Window, list[Place]] = {}
    for name, lines in texts.items():
        for number, window in enumerate(windows(lines), 1):
            places.setdefault(window, []).append((name, number))
    return places


def windows(lines: Sequence[str]) -> list[Window]:
    """Each line between its neighbours, without indentation."""
    bare = ["", *(line.strip() for line in lines), ""]
    return list(zip(bare, bare[1:], bare[2:], strict=False))


if __name__ == "__main__":
    main()
