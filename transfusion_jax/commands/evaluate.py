"""`transfusion evaluate`: runs suites on a checkpoint, prints their numbers, adds them to evaluation.json."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from transfusion_jax.commands.common.load_model import (
    choose_weights,
    measuring_mesh,
    naming_others,
    shared,
)
from transfusion_jax.config import SUITES, Config, ConfigError, extend, require
from transfusion_jax.data.datasets import Data
from transfusion_jax.evaluation import results
from transfusion_jax.evaluation.protocols import PROTOCOLS
from transfusion_jax.evaluation.results import METRICS, Entry
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.generation.guidance import untrained_branch
from transfusion_jax.parallel import processes
from transfusion_jax.storage.atomic import check_writable
from transfusion_jax.storage.cache_dirs import keep_programs
from transfusion_jax.tasks.base import make_task
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.training.checkpoint.errors import DeletedCheckpoint
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.facts import data_of
from transfusion_jax.training.run_dir import Workdir

POLL = 10.0  # seconds between two looks for a new checkpoint


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Evaluates; returns the exit code."""
    del overrides
    extend(arguments.extend)
    processes.connect()
    stream = sys.stderr if arguments.json else sys.stdout
    log = lambda line: print(line, file=stream, flush=True) if processes.first() else None  # noqa: E731
    require(
        not arguments.follow or arguments.step == "latest", "--follow evaluates every checkpoint: leave --step out"
    )
    workdir, config, weights = choose_weights(arguments)
    suites = _suites(arguments, config)
    processes.on_first(lambda: check_writable(workdir.path))
    keep_programs()
    if arguments.protocol:
        config = PROTOCOLS[arguments.protocol].applied(config)
    for line in untrained_branch(config) if any(suite.draws for suite in suites.values()) else ():
        log(line)
    data = data_of(workdir, config)
    for source in data.held_out.sources:
        if not len(source):
            log(f"{source.name} holds nothing out: nothing of it is measured")
    for suite in suites.values():
        suite.check(config, data)
    task = make_task(config)
    protocol, again = arguments.protocol, arguments.again
    job = _Job(task, data, measuring_mesh(task), workdir, weights, suites, protocol, again, log)
    with workdir.owned(), Checkpoints(workdir.checkpoints) as checkpoints:
        if arguments.follow:
            reports = job.follow(checkpoints)
        else:
            with naming_others(checkpoints):
                reports = iter([checkpoints.read(arguments.step, lambda step: job.evaluate(checkpoints, step))])
        for entries in reports:
            if arguments.json and processes.first():
                print(results.as_text(entries, indent=None), end="", flush=True)
    log(f"written to {workdir.evaluation}")
    return 0


@dataclass(frozen=True)
class _Job:
    """What is measured of every checkpoint."""

    task: ModelTask
    data: Data
    mesh: Mesh
    workdir: Workdir
    weights: str
    suites: dict[str, Suite]
    protocol: str | None
    again: bool
    log: Callable[[str], None]

    def follow(self, checkpoints: Checkpoints) -> Iterator[list[Entry]]:
        """Entries of each checkpoint there is and comes, oldest first, until that of the run's last step."""
        done: set[int] = set()
        while self.workdir.config().steps not in done:
            new = [step for step in processes.on_first(lambda: checkpoints.steps) if step not in done]
            if not new:
                time.sleep(POLL)
                continue
            done.add(new[0])
            try:
                yield self.evaluate(checkpoints, new[0])
            except DeletedCheckpoint:
                self.log(f"step {new[0]} was deleted before it could be evaluated; loop.keep keeps more of them")

    def evaluate(self, checkpoints: Checkpoints, step: int) -> list[Entry]:
        """An entry for each suite: what the file holds, or what is measured now, and written as each suite ends."""
        config = self.task.config
        self.log(f"{self.workdir.path}: step {step} of {config.steps}, {self.weights} weights")
        checkpoint = processes.each(lambda: checkpoints.hash(step, self.weights))[0]
        about = {"step": step, "weights": self.weights, "checkpoint": checkpoint}
        params, entries = None, []
        for name, suite in self.suites.items():
            settings = results.settings(suite, config, self.data, self.protocol)
            key = {**about, "suite": name, "settings": settings}
            entry = None if self.again else results.find(self.workdir, key)
            self.log(f"{name}: {_words(settings)}{', measured before' if entry else ''}")
            if entry is None:
                if params is None:
                    params = checkpoints.weights(step, self.weights, shared(self.task, self.mesh))
                with jax.set_mesh(self.mesh):
                    metrics = suite.run(self.task, params, self.data, jax.random.key(config.seed))
                entry = {**key, METRICS: metrics}
                results.write_entry(self.workdir, entry)
            if not entry[METRICS]:
                self.log("  nothing: no held-out row has any")
            width = max(map(len, entry[METRICS]), default=0)
            for metric, value in entry[METRICS].items():
                self.log(f"  {metric:<{width}}  {value:7.4f}")
            entries.append(entry)
        return entries


def _suites(arguments: argparse.Namespace, config: Config) -> dict[str, Suite]:
    """Those that are asked for; with a protocol, those of the config that draw.

    Raises:
        ConfigError: no such suite, a protocol, and a suite that does not draw, or none that does.
    """
    for name in arguments.suite or ():
        SUITES.check("--suite", name)
    chosen: dict[str, Suite] = {name: SUITES[name] for name in arguments.suite or config.evaluation.suites}
    if not arguments.protocol:
        return chosen
    drawing = {name: suite for name, suite in chosen.items() if suite.draws}
    others = [name for name in chosen if name not in drawing]
    if not drawing or (arguments.suite and others):
        raise ConfigError(f"--protocol says how to draw, and {', '.join(others)} draws nothing: name other suites")
    return drawing


def _words(settings: dict[str, Any]) -> str:
    """Settings for the user."""
    flat = {name: value for name, value in settings.items() if not isinstance(value, dict) and value is not None}
    flat |= {name: value for part in settings.values() if isinstance(part, dict) for name, value in part.items()}
    return ", ".join(f"{name} {value}" for name, value in flat.items())
