"""What the commands that train share: their flags, and what comes before a run touches its workdir."""

from __future__ import annotations

import argparse
import os
import sys

from jax.sharding import Mesh

from transfusion_jax import STARTED
from transfusion_jax.cache import keep_programs
from transfusion_jax.config import Run
from transfusion_jax.parallel import processes
from transfusion_jax.parallel.devices import check_backend, describe_devices
from transfusion_jax.parallel.mesh import check_batch, make_mesh
from transfusion_jax.storage import place
from transfusion_jax.training.access import check_storage
from transfusion_jax.training.profile import parse_steps
from transfusion_jax.training.tracking import parse_tracked
from transfusion_jax.training.watch import Watching
from transfusion_jax.training.workdir import Workdir

EPILOG = "Overrides: --config.a.b=value sets a field of the config, such as --config.optimizer.learning_rate=1e-4."


def add_running_flags(parser: argparse.ArgumentParser) -> None:
    """`--config`, `--workdir`, `--dry-run`, `--json`, `--profile`, `--wandb` and `--allow-cpu`."""
    parser.add_argument(
        "--config", metavar="FILE[:arg]", help="a config file; without it, that of the run begun with"
    )
    parser.add_argument("--workdir", type=place, help="where the run is kept; the same one resumes it")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and its size, and stop")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print one JSON object")
    parser.add_argument(
        "--profile", metavar="A:B", help="trace steps A to B-1 for XProf, into the workdir's profile"
    )
    parser.add_argument("--wandb", metavar="PROJECT[/RUN]", help="log to Weights & Biases, too")
    parser.add_argument("--allow-cpu", action="store_true", help="compute on the CPU beside an unused accelerator")


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
    say(describe_devices())
    mesh = make_mesh(run.mesh)
    check_batch(mesh, run)
    workdir = Workdir(arguments.workdir)
    processes.each(lambda: check_storage(workdir.path, run))
    return mesh, workdir


def say(line: str) -> None:
    """Prints, on the first process; a terminal or a pipe that has gone away does not end the run."""
    if not processes.first():
        return
    try:
        print(line, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends
