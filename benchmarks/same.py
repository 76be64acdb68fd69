"""Whether this working tree still computes what another revision does: the proof of a refactoring.

    python benchmarks/same.py main
    python benchmarks/same.py HEAD~3 --quick --families linear,llama

REV is checked out beside this tree for as long as it takes. Each check runs the same commands with the package of
both, in processes of their own, and compares what they wrote:

| check | what is the same |
|---|---|
| prepared data | every file that `transfusion prepare` writes, byte for byte |
| batch, noise, weights | of each family: a batch, the noised images with targets and timesteps, fresh weights |
| gradients | of that batch: gradients, losses and counts, on meshes of 8 devices that one CPU stands for |
| metrics, checkpoint, samples | of a run of configs/digits.py: every number but timings, every leaf, every image |
| speed | that run's elements per second beside the other's, which runs at the same time: told, not judged |
| resumed | a checkpoint of one revision continued by the other, and by itself |

All of it is compared to the bit, but gradients where `--tolerance` and trained runs where `--drift` say otherwise.
The exit code is 0 where all is the same, 1 where something differs or failed, and 2 where REV is unknown. After a
function has moved, add its new place to `PLACES` of same_probe.py; all other checks use the command line alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import harness
from same_probe import DEVICES, FAMILIES, MESHES

ROOT = Path(__file__).resolve().parents[1]
PREPARED = {  # folders, and the arguments of `transfusion prepare`
    "digits": "digits --image-size 8 --channels 1 --held-out 0.15 --encode grey-f1k17",
    "prose": "prose --held-out 0.05",
    "shapes": "shapes:200 --image-size 32 --encode dct-f4c8",
}
STEPS, QUICK_STEPS = 200, 20
QUICK_FAMILIES, QUICK_MESHES = ("linear", "chameleon"), ("fsdp × tensor",)
AUTOENCODER_MESHES = ("data", "fsdp")  # those that it can be split over
BEGUN, CONTINUED = 10, 20  # steps of configs/debug.py before and after resuming
TIMED = ("crc", "data_wait", "elements_per_", "goodput", "memory/", "mfu", "seconds_per_", "tflops_")
MANIFEST = ("checksums", "leaves", "data_hash", "identity_hash", "next_row", "totals")  # fields of a checkpoint's


@dataclass(frozen=True)
class Tree:
    """One of the two revisions."""

    name: str
    code: Path  # its checkout
    work: Path  # where its commands run and write

    def start(self, words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen:
        """Starts Python with the tree's package; what it prints is appended to `log` in `work`."""
        own = {"PYTHONPATH": str(self.code), "TRANSFUSION_CACHE": str(self.work / "cache"), "JAX_PLATFORMS": "cpu"}
        with (self.work / "log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, *words],
                cwd=self.work,
                env={**os.environ, **own, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


@dataclass(frozen=True)
class Verdict:
    """What a comparison found."""

    same: bool
    text: str


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    check: str
    family: str  # or the command's input
    mesh: str
    same: bool
    text: str


class CommandFailed(Exception):
    """A command ended with an error in one of the trees or in both; the text says why."""


def main() -> None:
    """Compares, prints, and exits with the code that the module's text names."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the checkout is removed
    parser = harness.parser(__doc__, timed=False)
    parser.add_argument("revision", metavar="REV", help="a commit, branch or tag to compare this working tree with")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="of gradients and losses: the largest difference, relative to a leaf's largest entry (default: 0)",
    )
    parser.add_argument(
        "--drift",
        type=float,
        default=0.0,
        help="of the metrics of trained runs: the largest relative difference; above 0 the runs' checkpoints and "
        "samples, which differ by as little, are not compared (default: 0)",
    )
    parser.add_argument("--families", type=families, help=f"some of {','.join(FAMILIES)} (default: all)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a minute or two: {' and '.join(QUICK_FAMILIES)} on one mesh, {QUICK_STEPS} steps, nothing resumed",
    )
    arguments = parser.parse_args()
    commit = commit_of(arguments.revision)
    if commit is None:
        parser.error(f"there is no revision {arguments.revision!r} in {ROOT}: name a commit, a branch or a tag")
    chosen = arguments.families or (QUICK_FAMILIES if arguments.quick else tuple(FAMILIES))
    results, began = [], time.monotonic()
    with trees(arguments.revision, commit) as both:
        for result in checks(both, chosen, arguments):
            results.append(result)
            print(f"{time.monotonic() - began:4.0f} s  {line_of(result)}", file=sys.stderr, flush=True)
    same = all(result.same for result in results)
    title = f"this working tree beside {arguments.revision} ({commit[:12]}): {'same' if same else 'DIFFERENT'}"
    allowed = {"tolerance": arguments.tolerance, "drift": arguments.drift}
    report = {"revision": commit, **allowed, "same": same, "machine": harness.machine()}
    report |= {"results": [dataclasses.asdict(result) for result in results]}
    harness.deliver(report, "\n".join([title, *table(results)]), arguments.json)
    sys.exit(0 if same else 1)


def families(words: str) -> tuple[str, ...]:
    """Names of families, split by commas."""
    names = tuple(words.split(","))
    for name in names:
        if name not in FAMILIES:
            raise argparse.ArgumentTypeError(f"there is no family {name!r}: one of {', '.join(FAMILIES)}")
    return names


def commit_of(revision: str) -> str | None:
    """The full hash of a revision of this repository; None where there is none."""
    words = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or None


@contextlib.contextmanager
def trees(revision: str, commit: str) -> Iterator[tuple[Tree, Tree]]:
    """This working tree and a checkout of the commit, which is removed at the end, with all that commands wrote."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory(prefix="same-") as name:
        folder = Path(name)
        both = Tree("this tree", ROOT, folder / "this"), Tree(revision, folder / "code", folder / "other")
        for tree in both:
            tree.work.mkdir()
        subprocess.run([*git, "add", "--quiet", "--detach", str(both[1].code), commit], check=True)
        try:
            yield both
        finally:
            subprocess.run([*git, "remove", "--force", str(both[1].code)], check=True)


def checks(both: tuple[Tree, Tree], chosen: Sequence[str], arguments: argparse.Namespace) -> Iterator[Result]:
    """All of them, one after the other."""
    tolerance, drift, quick = arguments.tolerance, arguments.drift, arguments.quick
    for name in PREPARED:
        yield from check_prepared(both, name)
    for family in chosen:
        yield from check_family(both, family, QUICK_MESHES if quick else tuple(MESHES), tolerance)
    yield from check_run(both, QUICK_STEPS if quick else STEPS, drift)
    if not quick:
        yield from check_resumed(both, drift)


def check_prepared(both: tuple[Tree, Tree], name: str) -> Iterator[Result]:
    """Prepares a folder of data with both."""
    words = ["prepare", *PREPARED[name].split(), "--output", f"data/{name}", "--workers", "1"]
    try:
        run_all([(tree, command(words)) for tree in both])
    except CommandFailed as error:
        yield Result("prepared data", name, "", False, str(error))
        return
    yield judged("prepared data", name, "", compare(*(files(tree.work / "data" / name) for tree in both)))


def check_family(both: tuple[Tree, Tree], family: str, meshes: Sequence[str], tolerance: float) -> Iterator[Result]:
    """Runs the probe of a family with both."""
    if "architecture" in FAMILIES[family]:
        meshes = [mesh for mesh in meshes if mesh in AUTOENCODER_MESHES] or AUTOENCODER_MESHES[:1]
    probe = [str(ROOT / "benchmarks" / "same_probe.py"), family, "--meshes", ",".join(meshes), "--output", family]
    environment = {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster; the runs of other checks are optimized
    }
    try:
        run_all([(tree, [*probe, "--code", str(tree.code)]) for tree in both], environment)
    except CommandFailed as error:
        yield Result("gradients", family, "", False, str(error))
        return
    inputs = [arrays(tree.work / family / "inputs.npz") for tree in both]
    for check, prefix in (("batch", "batch/"), ("noise", "noise/"), ("weights", "params/")):
        this, other = ({name: one[name] for name in one if name.startswith(prefix)} for one in inputs)
        if this or other:
            yield judged(check, family, "", compare_arrays(this, other))
    for mesh in meshes:
        this, other = (arrays(tree.work / family / f"{mesh}.npz") for tree in both)
        yield judged("gradients", family, mesh, compare_arrays(this, other, tolerance))


def check_run(both: tuple[Tree, Tree], steps: int, drift: float) -> Iterator[Result]:
    """Trains configs/digits.py with both, evaluates and draws at the end."""
    sizes = {
        "steps": steps,
        "optimizer.warmup_steps": steps // 2,
        "loop.log_every": steps // 20,
        "loop.save_every": steps,
        "loop.evaluate_every": steps,
        "loop.sample_every": steps,
        "sampling.steps": 10,
    }
    words = ["train", "--workdir", "digits", *(f"--config.{name}={value}" for name, value in sizes.items())]
    try:
        run_all([(tree, command([*words, "--config", str(tree.code / "configs/digits.py")])) for tree in both])
    except CommandFailed as error:
        yield Result("metrics", "digits", "", False, str(error))
        return
    runs = [tree.work / "digits" for tree in both]
    yield Result("speed", "digits", "", True, speed(*runs))
    yield judged("metrics", "digits", "", compare(*map(metrics, runs), drift=drift))
    if drift:
        return
    yield judged("checkpoint", "digits", "", compare(*(checkpoint(run, steps) for run in runs)))
    yield judged("samples", "digits", "", compare(*(files(run / "samples") for run in runs)))


def check_resumed(both: tuple[Tree, Tree], drift: float) -> Iterator[Result]:
    """Begins configs/debug.py with each, and continues it with both."""

    def train(tree: Tree, workdir: Path, *words: str) -> tuple[Tree, list[str]]:
        config = str(tree.code / "configs/debug.py")
        return tree, command(["train", "--workdir", str(workdir), "--config", config, *words])

    pairs = (both, both[::-1])
    try:
        run_all([train(tree, tree.work / "own", f"--config.loop.stop_at={BEGUN}") for tree in both])
        for tree in both:
            shutil.copytree(tree.work / "own", tree.work / "handed_over")
        run_all([train(tree, tree.work / "own") for tree in both])
        run_all([train(other, tree.work / "handed_over") for tree, other in pairs])
    except CommandFailed as error:
        yield Result("resumed", "debug", "", False, str(error))
        return
    for tree, other in pairs:
        runs = [tree.work / "own", tree.work / "handed_over"]
        verdict = compare(
            *(metrics(run) | ({} if drift else checkpoint(run, CONTINUED)) for run in runs), drift=drift
        )
        yield judged(f"resumed by {other.name}", "debug", "", verdict)


def command(words: Sequence[str]) -> list[str]:
    """What starts Python as `transfusion`."""
    return ["-m", "transfusion_jax.cli", *words]


def run_all(commands: Sequence[tuple[Tree, Sequence[str]]], environment: Mapping[str, str] | None = None) -> None:
    """Runs commands at the same time, each with its tree's package, and waits for all.

    Raises:
        CommandFailed: some ended with an error.
    """
    running = []
    try:
        for tree, words in commands:
            running.append((tree, tree.start(words, environment or {})))
        failed = [tree for tree, process in running if process.wait()]
    finally:
        for _, process in running:
            process.kill()
            process.wait()
    if failed:
        last = [f"failed with {tree.name}: {last_line(tree.work / 'log')}" for tree in failed]
        raise CommandFailed("; ".join(last))


def last_line(log: Path) -> str:
    """The last line that is not empty."""
    return [line.strip() for line in log.read_text().splitlines() if line.strip()][-1]


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file."""
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def metrics(workdir: Path) -> dict[str, object]:
    """Every number of a run's `metrics.jsonl` but timings, by step and name."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        f"step {record['step']} {name}": value
        for record in records
        for name, value in record.items()
        if not name.startswith(TIMED)
    }


def speed(this: Path, other: Path) -> str:
    """Elements per second of a run beside those of one that ran at the same time, the median of their records."""
    medians = []
    for workdir in (this, other):
        records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        medians.append(statistics.median(r["elements_per_second"] for r in records if "elements_per_second" in r))
    return f"{medians[0] / medians[1]:.3f} times the elements per second, both at once"


def checkpoint(workdir: Path, step: int) -> dict[str, object]:
    """What a checkpoint's manifest says of its contents, the checksum of every leaf included."""
    written = json.loads((workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").read_text())
    manifest = written["custom_metadata"]["manifest"]
    values: dict[str, object] = {}
    for name in MANIFEST:
        field = manifest[name]
        values |= (
            {f"{name} {key}": value for key, value in field.items()} if isinstance(field, dict) else {name: field}
        )
    return values


def compare(this: Mapping[str, object], other: Mapping[str, object], *, drift: float = 0.0) -> Verdict:
    """Whether both have the same names with equal values, or with numbers whose relative difference is small."""
    lone = alone(this, other)
    apart = [name for name in this if name in other and this[name] != other[name]]
    if drift and this and not lone:
        found = {name: relative(this[name], other[name]) for name in apart}
        farthest = max(found, key=lambda name: found[name], default="")
        worst = f", by at most {found[farthest]:.2g} of their value, in {farthest}" if found else ""
        return Verdict(
            all(value <= drift for value in found.values()), f"{len(apart)} of {len(this)} differ{worst}"
        )
    if not this and not other:
        return Verdict(False, "nothing was written")
    if not lone and not apart:
        return Verdict(True, f"{len(this)} equal")
    first = [f"{apart[0]}: {shortened(this[apart[0]])} and {shortened(other[apart[0]])}"] if apart else []
    return Verdict(False, "; ".join([f"{len(apart)} of {len(this)} differ", *first, *lone]))


def relative(this: object, other: object) -> float:
    """The difference of two numbers by the larger one; infinite for other values that differ."""
    if isinstance(this, int | float) and isinstance(other, int | float):
        return abs(this - other) / max(abs(this), abs(other))
    return math.inf


def compare_arrays(
    this: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], tolerance: float = 0.0
) -> Verdict:
    """Whether both have the same leaves to the bit, or within a tolerance; names the leaf furthest apart."""
    lone = alone(this, other)
    distances = {name: distance(this[name], other[name]) for name in this if name in other}
    apart = {name: value for name, value in distances.items() if value is not None}
    if not lone and not apart:
        return Verdict(True, f"{len(this)} leaves equal to the bit")
    furthest = max(apart, key=lambda name: apart[name], default="")
    worst = [f"at most {apart[furthest]:.2g}, in {furthest}"] if apart else []
    text = "; ".join([f"{len(apart)} of {len(this)} leaves differ", *worst, *lone])
    return Verdict(not lone and tolerance > 0 and all(value <= tolerance for value in apart.values()), text)


def distance(this: np.ndarray, other: np.ndarray) -> float | None:
    """None for arrays of the same bits; else their largest difference by the first one's largest entry.

    Infinite for other shapes or dtypes, and where a difference is no number.
    """
    if (this.shape, this.dtype) != (other.shape, other.dtype):
        return np.inf
    if this.tobytes() == other.tobytes():
        return None
    wide = this.astype(np.float64)
    with np.errstate(invalid="ignore"):
        largest = float(np.max(np.abs(wide - other.astype(np.float64))))
    return largest / max(float(np.max(np.abs(wide))), 1e-30) if np.isfinite(largest) else np.inf


def alone(this: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """The names that one of both lacks, the first of them in words."""
    found = []
    for names, where in ((this.keys() - other.keys(), "this tree"), (other.keys() - this.keys(), "the other")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            found.append(f"only in {where}: {min(names)}{more}")
    return found


def shortened(value: object) -> str:
    """A value for the table."""
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def judged(check: str, family: str, mesh: str, verdict: Verdict) -> Result:
    """A line of the table."""
    return Result(check, family, mesh, verdict.same, verdict.text)


def line_of(result: Result) -> str:
    """A result while it runs."""
    names = " ".join(name for name in (result.check, result.family, result.mesh) if name)
    return f"{names}: {'same' if result.same else 'DIFFERENT'}, {result.text}"


def table(results: Sequence[Result]) -> list[str]:
    """The results for reading, flush left."""
    rows = [("check", "family", "mesh", "", "")]
    rows += [(r.check, r.family, r.mesh, "same" if r.same else "DIFFERENT", r.text) for r in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


if __name__ == "__main__":
    main()
