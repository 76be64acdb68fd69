"""`transfusion judge`: a checkpoint before the judges of papers; each needs packages or files of its own."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import jax

from transfusion_jax.commands.common.load_model import measuring_mesh, read_model
from transfusion_jax.commands.flags.judge import IMAGES
from transfusion_jax.config import ConfigError, SourceConfig, require
from transfusion_jax.data.datasets import Data
from transfusion_jax.evaluation import geneval
from transfusion_jax.evaluation.fid import Fid
from transfusion_jax.evaluation.inception import FEATURES
from transfusion_jax.evaluation.pictures import captioned_pictures, drawn_for_held_out
from transfusion_jax.evaluation.protocols import PROTOCOLS
from transfusion_jax.evaluation.results import sampling_of
from transfusion_jax.evaluation.suites.frechet import Statistics
from transfusion_jax.generation.guidance import untrained_branch
from transfusion_jax.generation.sizes import grid_of_size, parse_size, pixels_of_grid, untrained_shape
from transfusion_jax.model.transfusion import Params
from transfusion_jax.parallel import processes
from transfusion_jax.storage.atomic import check_writable, write_whole
from transfusion_jax.storage.outputs import check_output_folder
from transfusion_jax.tasks.base import make_task
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.training.facts import codec_of, data_of, trained_shapes
from transfusion_jax.training.run_dir import Workdir

Verdict = tuple[dict[str, float], dict[str, Any]]  # metrics by name, and what else the report says
Ask = Callable[[ModelTask, Params, Workdir], Verdict]


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Judges; returns the exit code."""
    del overrides
    processes.connect()
    ask: Ask = JUDGES[arguments.judge](arguments)  # what is missing is said before weights are read
    stream = sys.stderr if arguments.json else sys.stdout
    log = lambda line: print(line, file=stream, flush=True) if processes.first() else None  # noqa: E731
    processes.on_first(lambda: check_writable(arguments.workdir))
    task, params, workdir, step, weights = read_model(arguments, log, measuring_mesh)
    path = workdir.path / f"judge-{arguments.judge}.json"
    with workdir.owned(), jax.set_mesh(measuring_mesh(task)):
        metrics, about = ask(task, params, workdir)
        report = {"judge": arguments.judge, "step": step, "weights": weights, **about, "metrics": metrics}
        if processes.first():
            write_whole(path, json.dumps(report, indent=2) + "\n")
    if not processes.first():
        return 0
    if arguments.json:
        print(json.dumps(report))
        return 0
    for name, value in about.items():
        if isinstance(value, str | int):
            print(f"  {name}: {value}")
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"  {name:<{width}}  {value:7.4f}")
    print(f"written to {path}")
    return 0


def _progress(line: str) -> None:
    if processes.first():
        print(line, file=sys.stderr, flush=True)


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


def _prepare_harness(arguments: argparse.Namespace) -> Ask:
    shots, limit, include = arguments.num_fewshot, arguments.limit, arguments.include
    require(
        limit is None or 0 < limit < 1 or limit % 1 == 0 < limit, f"--limit must be a count or a share, not {limit}"
    )
    require(include is None or include.is_dir(), f"--include: there is no folder {include}")
    harness = _judge("harness", "harness")

    def ask(task: ModelTask, params: Params, workdir: Workdir) -> Verdict:
        model = harness.HarnessModel(task, params, codec_of(workdir))
        metrics, details = harness.run_harness(model, arguments.tasks, shots, limit, include)
        return metrics, {"tasks": " ".join(arguments.tasks), "harness": details}

    return ask


def _prepare_images(arguments: argparse.Namespace) -> Ask:
    protocol, statistics = arguments.protocol, arguments.statistics
    require(bool(arguments.inception or arguments.clip), "name a judge of images: --inception, --clip or both")
    require(arguments.inception or not statistics, "--statistics goes with --inception")
    require(arguments.n is None or not protocol, f"leave -n out: --protocol {protocol} says how many images")
    count = PROTOCOLS[protocol].images if protocol else arguments.n or IMAGES
    judges: list[Any] = []
    if arguments.inception:
        known = Statistics.load(statistics, FEATURES) if statistics else None
        judges.append(Fid(arguments.inception, known))
    if arguments.clip:
        judges.append(_judge("clip", "clip").ClipScore(arguments.clip))

    def ask(task: ModelTask, params: Params, workdir: Workdir) -> Verdict:
        if protocol:
            task = make_task(PROTOCOLS[protocol].applied(task.config))
        _warn(task)
        data, drawn = _data(task, workdir, arguments.pictures), 0
        there = sum(
            1 for _ in itertools.islice(captioned_pictures(data.held_out, task.config, data.codec, 0), count)
        )
        require(there >= 2, "this judge needs captioned images among the held-out data")
        require(
            there == count or not protocol,
            f"--protocol {protocol} is of {count} images, and {there} are held out: name more with --pictures",
        )
        for part in drawn_for_held_out(task, params, data, there):
            for judge in judges:
                judge.see(part)
            drawn += len(part.drawn)
            _progress(f"{drawn} of {there} images")
        about: dict[str, Any] = {"images": drawn, "protocol": protocol}
        if arguments.inception:
            about["reference"] = str(statistics or "the captions' own images")
        metrics: dict[str, float] = {}
        for judge in judges:
            about |= judge.about()
            metrics |= judge.metrics()
        return metrics, about | {"sampling": sampling_of(task.config)}

    return ask


def _prepare_cider(arguments: argparse.Namespace) -> Ask:
    cider = _judge("cider", "captions")
    cider.require_java()

    def ask(task: ModelTask, params: Params, workdir: Workdir) -> Verdict:
        data = _data(task, workdir, arguments.pictures)
        verdict: Verdict = cider.run_cider(task, params, data.codec, data.held_out, arguments.prompt, arguments.n)
        return verdict

    return ask


def _prepare_geneval(arguments: argparse.Namespace) -> Ask:
    lines, output = geneval.read_metadata(arguments.prompts), arguments.output
    processes.on_first(lambda: check_output_folder(output))
    used = processes.on_first(lambda: output.exists() and any(output.iterdir()))
    require(not used, f"{output} is not empty: choose another --output")

    size = parse_size(arguments.size) if arguments.size else None

    def ask(task: ModelTask, params: Params, workdir: Workdir) -> Verdict:
        config, codec = task.config, codec_of(workdir)
        grid = grid_of_size(*size, config, codec) if size else geneval.square_grid(config.model)
        height, width = pixels_of_grid(grid, config, codec)
        _warn(task)
        if line := untrained_shape(grid, config, codec, trained_shapes(workdir.manifest())):
            _progress(line)
        for done in geneval.write_images(task, params, codec, lines, output, arguments.n, grid):
            _progress(f"{done} of {len(lines)} prompts")
        about = {
            "prompts": len(lines),
            "images": len(lines) * arguments.n,
            "geneval_resizing": f"none: the files are {width}x{height}, as drawn; the rest is GenEval's own tools'",
        }
        return {}, about | {"sampling": sampling_of(config)}

    return ask


def _warn(task: ModelTask) -> None:
    for line in untrained_branch(task.config):
        _progress(line)


def _data(task: ModelTask, workdir: Workdir, pictured: str | None) -> Data:
    """The run's data, or a prepared folder in their place, all of which counts as held out."""
    config = task.config
    if pictured:
        sources = {"pictures": SourceConfig(path=pictured, held_out=pictured)}
        config = replace(config, data=replace(config.data, sources=sources, phases={}))
    return data_of(workdir, config)


JUDGES: dict[str, Callable[[argparse.Namespace], Ask]] = {
    "harness": _prepare_harness,
    "images": _prepare_images,
    "cider": _prepare_cider,
    "geneval": _prepare_geneval,
}
