"""`transfusion judge`: a checkpoint before the judges of papers; each needs packages or files of its own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from transfusion_jax.commands.reading import add_reading_flags, read_model
from transfusion_jax.config import ConfigError, require
from transfusion_jax.model.transfusion import Params
from transfusion_jax.training.files import write_whole
from transfusion_jax.training.tasks import ModelTask
from transfusion_jax.training.workdir import Workdir

# metrics by name, and what else the report says
Ask = Callable[[ModelTask, Params, Workdir], tuple[dict[str, float], dict[str, Any]]]


def add_parser(commands: Any) -> None:
    """Declares the command and its parts."""
    parser = commands.add_parser("judge", help="a checkpoint before the judges of papers", description=__doc__)
    parts = parser.add_subparsers(metavar="JUDGE", required=True)
    for name, (declare, prepare, text) in JUDGES.items():
        part = parts.add_parser(name, help=text, description=text)
        add_reading_flags(part)
        declare(part)
        part.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
        part.set_defaults(run=run, judge=name, prepare=prepare, takes_overrides=False)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Judges; returns the exit code."""
    del overrides
    ask: Ask = arguments.prepare(arguments)  # what is missing is said before weights are read
    say = lambda line: print(line, file=sys.stderr if arguments.json else sys.stdout, flush=True)  # noqa: E731
    task, params, workdir, step, weights = read_model(arguments, say)
    metrics, about = ask(task, params, workdir)
    report = {"judge": arguments.judge, "step": step, "weights": weights, **about, "metrics": metrics}
    path = workdir.path / f"judge-{arguments.judge}.json"
    write_whole(path, json.dumps(report, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(report))
        return 0
    for name, value in about.items():
        if isinstance(value, str | int | float):
            print(f"  {name}: {value}")
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"  {name:<{width}}  {value:7.4f}")
    print(f"written to {path}")
    return 0


def _judge(name: str, extra: str) -> Any:
    """A module of `evaluation` whose packages are in an extra.

    Raises:
        ConfigError: they are not installed.
    """
    try:
        return import_module(f"transfusion_jax.evaluation.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this judge needs the package {error.name}: pip install 'transfusion-jax[{extra}]'"
        ) from error


def _declare_harness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tasks",
        nargs="*",
        default=["llama"],
        metavar="TASK",
        help="tasks or groups of lm-evaluation-harness; llama (default) is the paper's suite of seven",
    )
    parser.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples before a question (default: the task's)"
    )
    parser.add_argument("--limit", type=float, metavar="N", help="documents of each task; below 1, their share")
    parser.add_argument("--include", type=Path, metavar="FOLDER", help="a folder with tasks of your own, as YAML")


def _prepare_harness(arguments: argparse.Namespace) -> Ask:
    shots, limit, include = arguments.num_fewshot, arguments.limit, arguments.include
    require(shots is None or shots >= 0, f"--num-fewshot must not be negative, not {shots}")
    require(
        limit is None or 0 < limit < 1 or limit % 1 == 0 < limit, f"--limit must be a count or a share, not {limit}"
    )
    require(include is None or include.is_dir(), f"--include: there is no folder {include}")
    harness = _judge("harness", "harness")

    def ask(task: ModelTask, params: Params, workdir: Workdir) -> tuple[dict[str, float], dict[str, Any]]:
        model = harness.HarnessModel(task, params, workdir.codec())
        metrics, details = harness.run(model, arguments.tasks, shots, limit, include)
        return metrics, {"tasks": " ".join(arguments.tasks), "harness": details}

    return ask


JUDGES: dict[str, tuple[Callable, Callable, str]] = {
    "harness": (_declare_harness, _prepare_harness, "text tasks of lm-evaluation-harness"),
}
