"""`transfusion evaluate`: runs suites on a checkpoint, prints a table, writes evaluation.json."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import jax

from transfusion_jax.commands.reading import add_reading_flags, read_model
from transfusion_jax.data import load as data_loading
from transfusion_jax.evaluation.suite import SUITES


def add_parser(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("evaluate", help="run evaluation suites on a checkpoint", description=__doc__)
    add_reading_flags(parser)
    parser.add_argument("--suite", action="append", choices=sorted(SUITES), help="a suite (default: the config's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(run=run, takes_overrides=False)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Evaluates; returns the exit code."""
    del overrides
    say = lambda line: print(line, file=sys.stderr if arguments.json else sys.stdout, flush=True)  # noqa: E731
    task, params, workdir, step, weights = read_model(arguments, say)
    data = data_loading.load(task.config, workdir.codec().statistics)
    results: dict[str, float] = {}
    for name in arguments.suite or task.config.evaluation.suites:
        results |= SUITES[name].run(task, params, data, jax.random.key(task.config.seed))
    how = {"latents": ("steps", "guidance"), "codes": ("temperature", "guidance"), "none": ()}
    sampling = {name: getattr(task.config.sampling, name) for name in how[task.config.model.images]}
    report = {"step": step, "weights": weights, "sampling": sampling, "metrics": results}
    workdir.evaluation.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(report))
    else:
        width = max(map(len, results))
        for name, value in results.items():
            print(f"  {name:<{width}}  {value:7.4f}")
        print(f"written to {workdir.evaluation}")
    return 0
