"""`transfusion scale run`: trains a ladder's models, each in a workdir of its own, and gathers their numbers.

The same command goes on after whatever ended it: runs that are done are passed over, others resume.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transfusion_jax.config import require
from transfusion_jax.errors import INTERRUPTED
from transfusion_jax.planning import topology as topologies
from transfusion_jax.scaling import costs, ladder
from transfusion_jax.scaling.ladder import Ladder, Point
from transfusion_jax.scaling.running import Training, run_trainings
from transfusion_jax.storage import Place, place
from transfusion_jax.training.files import write_lines, write_whole
from transfusion_jax.training.goodput import RESTART, account, read_attempts
from transfusion_jax.training.metrics import duration
from transfusion_jax.training.workdir import Workdir

JSONL, CSV = "points.jsonl", "points.csv"
FAILED = 1


def add_parser(parts: Any) -> None:
    """Declares this part of `scale`."""
    parser = parts.add_parser("run", help="train a ladder's models", description=__doc__)
    parser.add_argument("--ladder", type=Path, required=True, metavar="FILE", help="such as configs/ladders/cpu.py")
    parser.add_argument("--workdir", type=place, help="where the runs and their numbers are kept")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="of what they print (default: the workdir)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time on this machine (default: 1)"
    )
    parser.add_argument(
        "--launch", metavar="WORDS", default="", help="a launcher's job for each run, as --launch 'slurm --nodes 4'"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what every run takes, and stop")
    parser.add_argument("--topology", metavar="NAME", help="of --dry-run: the machine (default: the ladder's)")
    parser.add_argument("--json", action="store_true", help="of --dry-run: print one JSON object")
    parser.set_defaults(run=run, takes_overrides=False)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Trains what is not yet trained; returns the exit code."""
    del overrides
    found = ladder.load(arguments.ladder)
    if arguments.dry_run:
        return _dry_run(found, arguments)
    for option in ("topology", "json"):
        require(not getattr(arguments, option), f"--{option} goes with --dry-run")
    require(arguments.workdir is not None, "scale run needs --workdir DIR (or --dry-run to look only)")
    require(arguments.jobs > 0, f"--jobs {arguments.jobs} must be positive")
    launcher = ["launch", *shlex.split(arguments.launch)] if arguments.launch else []
    logs = arguments.logs or arguments.workdir
    require(isinstance(logs, Path), "--logs DIR is needed where the workdir is in a bucket")
    train = functools.partial(_train, root=arguments.workdir, logs=logs, jobs=arguments.jobs, launcher=launcher)
    sweep = ladder.sweep_points(found)
    if (code := train(sweep)) or not _done(sweep, arguments.workdir):
        return code
    rates = ladder.best_rates(found, arguments.workdir)
    for family, rate in rates.items():
        ends = rate in (min(found.sweep.rates), max(found.sweep.rates)) if found.sweep else False
        note = ", at the sweep's end: a wider one may find a better" if ends else ""
        print(f"{family}: learning rate {rate:g}{note}", flush=True)
    return train(ladder.points(found, rates), gathered=True)


def _train(
    points: Sequence[Point], root: Place, logs: Path, jobs: int, launcher: Sequence[str], gathered: bool = False
) -> int:
    left = sorted((p for p in points if not p.measured(root)), key=lambda p: p.flops, reverse=True)
    if points:
        print(f"{len(points) - len(left)} of {len(points)} runs are done", flush=True)
    whole, done, began = sum(p.flops for p in left), 0.0, time.monotonic()
    by_name = {point.name: point for point in left}
    failed: list[Point] = []

    def start(training: Training) -> None:
        print(f"{training.name}: {shlex.join(['tail', '-f', str(training.log)])}", flush=True)

    def end(training: Training, code: int) -> None:
        nonlocal done
        point = by_name[training.name]
        if code == 0 and point.measured(root):
            done += point.flops
            seconds = (time.monotonic() - began) / done * (whole - done)
            print(f"{point.name}: done" + (f"; {duration(seconds)} left" if seconds else ""), flush=True)
        elif code == 0:
            print(f"{point.name}: submitted; give this command again when it has ended", flush=True)
        elif code != INTERRUPTED:
            failed.append(point)
            print(f"{point.name}: exit code {code}, see {training.log}", file=sys.stderr, flush=True)
        if gathered:
            _gather(points, root)

    asked = run_trainings([point.training(root, logs) for point in left], jobs, launcher, start, end)
    if gathered:
        _gather(points, root)
        print(f"written to {root / JSONL} and {root / CSV}")
    return INTERRUPTED if asked else FAILED if failed else 0


def _done(points: Sequence[Point], root: Place) -> bool:
    return all(point.measured(root) for point in points)


def _gather(points: Sequence[Point], root: Place) -> None:
    """Writes the numbers of runs that are done, in the ladder's order; nothing in the CSV hangs on time."""
    found = [(point, ladder.record(point, root)) for point in points if point.measured(root)]
    lines = [
        record
        | {
            "config": point.spec,
            "changes": list(point.changes),
            "workdir": point.name,
            "samples": f"{point.name}/samples/{point.config.steps:08d}.png",
            "wall_seconds": round(_seconds(root / point.name)),
        }
        for point, record in found
    ]
    write_lines(root / JSONL, lines)
    text = io.StringIO()
    columns = dict.fromkeys(name for _, record in found for name in record)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(record for _, record in found)
    write_whole(root / CSV, text.getvalue())


def _seconds(workdir: Place) -> float:
    """That a run took, without what lay between its attempts."""
    spent = account(read_attempts(Workdir(workdir).attempts))
    return spent.total - spent.seconds[RESTART]


def _dry_run(found: Ladder, arguments: argparse.Namespace) -> int:
    name = arguments.topology or found.topology
    topology = topologies.parse(name) if name else None
    points = [*ladder.sweep_points(found), *ladder.points(found, {})]
    counted = [costs.cost(point, topology) for point in points]
    if arguments.json:
        print(json.dumps({"ladder": found.name, "topology": name or None, "runs": [asdict(c) for c in counted]}))
        return 0
    print(costs.table(counted))
    if topology:
        print(f"chip-hours are those of {topology.describe()}, by the formulas of `transfusion plan --analytic`")
    return 0
