"""What the commands that train share: their flags, and what comes before a run touches its workdir."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from jax.sharding import Mesh

from transfusion_jax import STARTED
from transfusion_jax import config as configs
from transfusion_jax.config import Run
from transfusion_jax.errors import printable
from transfusion_jax.parallel import processes
from transfusion_jax.parallel.consistency import agree, code_hash
from transfusion_jax.parallel.devices import check_backend, describe_devices
from transfusion_jax.parallel.mesh import check_batch, make_mesh, reach_all
from transfusion_jax.storage.cache_dirs import keep_programs
from transfusion_jax.tasks.base import Task
from transfusion_jax.training.facts import facts_of
from transfusion_jax.training.monitoring.profiler import parse_steps
from transfusion_jax.training.monitoring.telemetry import Watching
from transfusion_jax.training.monitoring.wandb_logger import parse_tracked
from transfusion_jax.training.preflight import check_storage
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.step.state import RunContext


def watching_of(arguments: argparse.Namespace, run: Run) -> Watching:
    """What else to look at while it trains."""
    return Watching(
        STARTED,
        parse_steps(arguments.profile, run.steps) if arguments.profile else None,
        parse_tracked(arguments.wandb) if arguments.wandb else None,
    )


def make_ready(arguments: argparse.Namespace, run: Run) -> tuple[Mesh, Workdir]:
    """The devices, and the workdir, once it is known that both can be used; nothing is written."""
    processes.connect()
    check_backend(arguments.allow_cpu)
    keep_programs()
    log(describe_devices())
    mesh = make_mesh(run.mesh)
    check_batch(mesh, run)
    workdir = Workdir(arguments.workdir)
    processes.each(lambda: check_storage(workdir.path, run))
    return mesh, workdir


def context_of(task: Task, run: Run, data: Any, mesh: Mesh) -> RunContext:
    """The run, once it is known that all processes have the same, and reach one another."""
    context = RunContext(task, run, mesh, facts_of(task, run, data), log)
    agree({"config": configs.to_dict(run), **context.facts, "code": code_hash()})
    reach_all(mesh)
    return context


def log(line: str) -> None:
    """Prints, on the first process; a terminal or a pipe that has gone away does not end the run."""
    if not processes.first():
        return
    try:
        print(printable(line), flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends
