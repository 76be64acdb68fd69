"""`transfusion scale run`: trains a ladder's models, each in a workdir of its own, and gathers their numbers.

The same command goes on after whatever ended it: runs whose scores are there are passed over, others resume.
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

from transfusion_jax.config import ConfigError, require
from transfusion_jax.errors import INTERRUPTED
from transfusion_jax.planning import topology as topologies
from transfusion_jax.scaling import costs, ladder
from transfusion_jax.scaling.ladder import Ladder, LadderRun
from transfusion_jax.scaling.options import IN_WORKDIR
from transfusion_jax.scaling.running import FAILED, Training, run_trainings
from transfusion_jax.storage.atomic import write_whole
from transfusion_jax.storage.jsonl import write_lines
from transfusion_jax.storage.outputs import check_output_folder
from transfusion_jax.storage.paths import Place
from transfusion_jax.training.monitoring.goodput import RESTART, account, read_attempts
from transfusion_jax.training.monitoring.metrics import duration
from transfusion_jax.training.run_dir import Workdir

CSV = "points.csv"
LAUNCH_ONE = ("--name", "--dry-run")  # options of `launch` that are of no use to many jobs


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Trains what is not yet trained; returns the exit code."""
    del overrides
    found = ladder.load_ladder(arguments.ladder)
    if arguments.dry_run:
        for option in ("workdir", "logs", "launch"):
            require(not getattr(arguments, option), f"leave --{option} out: it does not go with --dry-run")
        return _dry_run(found, arguments)
    for option in ("topology", "json"):
        require(not getattr(arguments, option), f"--{option} goes with --dry-run")
    require(arguments.workdir is not None, "scale run needs --workdir DIR (or --dry-run to look only)")
    launcher = ["launch", *_words(arguments.launch)] if arguments.launch else []
    for word in launcher:
        alone = word.partition("=")[0] in LAUNCH_ONE
        require(not alone, f"--launch: leave {word} out, it is for one job, and every run is a job of its own")
    logs = arguments.logs or arguments.workdir
    require(isinstance(logs, Path), "--logs DIR is needed where the workdir is in a bucket")
    for folder in (arguments.workdir, logs):
        check_output_folder(folder)
    train = functools.partial(_train, root=arguments.workdir, logs=logs, jobs=arguments.jobs, launcher=launcher)
    sweep = ladder.sweep_runs(found)
    if (code := train(sweep)) or not _done(sweep, arguments.workdir):
        return code
    rates = ladder.best_rates(found, arguments.workdir)
    for family, rate in rates.items():
        ends = rate in (min(found.sweep.rates), max(found.sweep.rates)) if found.sweep else False
        note = ", at the sweep's end: a wider one may find a better" if ends else ""
        print(f"{family}: learning rate {rate:g}{note}", flush=True)
    return train(ladder.runs(found, rates), gathered=True)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:  # a quote that is not closed
        raise ConfigError(f"--launch {text}: {error}") from error


def _train(
    runs: Sequence[LadderRun], root: Place, logs: Path, jobs: int, launcher: Sequence[str], gathered: bool = False
) -> int:
    todo = [each for each in runs if not each.measured(root)]
    flops = {each.name: costs.exact_flops(each.config) for each in todo}
    left = sorted(todo, key=lambda each: flops[each.name], reverse=True)
    if runs:
        print(f"{len(runs) - len(left)} of {len(runs)} runs are done", flush=True)
    whole, done, began = sum(flops.values()), 0.0, time.monotonic()
    by_name = {each.name: each for each in left}
    failed: list[LadderRun] = []

    def start(training: Training) -> None:
        print(f"{training.name}: {shlex.join(['tail', '-f', str(training.log)])}", flush=True)

    def end(training: Training, code: int) -> None:
        nonlocal done
        each = by_name[training.name]
        if code == 0 and each.measured(root):
            done += flops[each.name]
            seconds = (time.monotonic() - began) / done * (whole - done)
            print(f"{each.name}: done" + (f"; {duration(seconds)} left" if seconds else ""), flush=True)
        elif code == 0 and launcher:
            print(
                f"{each.name}: its job is in {training.log}; give this command again when it has ended", flush=True
            )
        elif code != INTERRUPTED:
            failed.append(each)
            said = f"exit code {code}" if code else "it has ended without scores"
            print(f"{each.name}: {said}, see {training.log}", file=sys.stderr, flush=True)
        if gathered:
            _gather(runs, root)

    asked = run_trainings([each.training(root, logs) for each in left], jobs, launcher, start, end)
    if gathered:
        _gather(runs, root)
        print(f"written to {root / IN_WORKDIR} and {root / CSV}")
    return INTERRUPTED if asked else FAILED if failed else 0


def _done(runs: Sequence[LadderRun], root: Place) -> bool:
    return all(each.measured(root) for each in runs)


def _gather(runs: Sequence[LadderRun], root: Place) -> None:
    """Writes the numbers of runs that are done, in the ladder's order; nothing in the CSV hangs on time."""
    found = [(each, ladder.record_of_run(each, root)) for each in runs if each.measured(root)]
    lines = [
        record
        | {
            "config": each.spec,
            "changes": list(each.changes),
            "workdir": each.name,
            **_samples(each),
            "wall_seconds": round(_seconds(root / each.name)),
        }
        for each, record in found
    ]
    write_lines(root / IN_WORKDIR, lines)
    text = io.StringIO()
    columns = dict.fromkeys(name for _, record in found for name in record)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(record for _, record in found)
    write_whole(root / CSV, text.getvalue())


def _samples(run: LadderRun) -> dict[str, str]:
    """Where its last drawings are; models of text alone have none."""
    drawn = f"{run.name}/samples/{run.config.steps:08d}.png"
    return {"samples": drawn} if run.config.loop.sample_every else {}


def _seconds(workdir: Place) -> float:
    """That a run took, without what lay between its attempts."""
    spent = account(read_attempts(Workdir(workdir).attempts))
    return spent.total - spent.seconds[RESTART]


def _dry_run(found: Ladder, arguments: argparse.Namespace) -> int:
    name = arguments.topology or found.topology
    topology = topologies.parse_topology(name) if name else None
    runs = [*ladder.sweep_runs(found), *ladder.runs(found, {})]
    counted = [costs.cost(each, topology) for each in runs]
    if arguments.json:
        print(json.dumps({"ladder": found.name, "topology": name or None, "runs": [asdict(c) for c in counted]}))
        return 0
    print(costs.cost_table(counted))
    if topology:
        print(f"chip-hours are those of {topology.describe()}, by the formulas of `transfusion plan --analytic`")
    return 0
