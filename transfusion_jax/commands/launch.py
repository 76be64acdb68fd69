"""`transfusion launch`: runs another command on many hosts, or with --dry-run prints what would be run."""

from __future__ import annotations

import argparse
from typing import Any

from transfusion_jax.config import require
from transfusion_jax.launching import local, slurm

TARGETS = (local, slurm)
EPILOG = (
    "After -- stands any other command, as in: "
    "transfusion launch local --processes 4 -- train --config configs/debug.py --workdir runs/debug"
)


def add_parser(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "launch", help="run another command on many hosts", description=__doc__, epilog=EPILOG
    )
    targets = parser.add_subparsers(metavar="TARGET", required=True)
    for target in TARGETS:
        target.add_parser(targets)
    for target in targets.choices.values():
        target.usage = f"{target.prog} [OPTION…] -- COMMAND…"
        target.epilog = EPILOG
    parser.set_defaults(run=run, takes_overrides=True)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Launches, and returns the exit code: for `local` the job's, elsewhere that of submitting it."""
    require(not overrides, "--config.… is an option of the command that stands after --")
    require(
        arguments.command, "launch needs -- and a command after it, such as -- train --config configs/debug.py …"
    )
    require(arguments.command[0] != "launch", "launch cannot launch itself")
    code: int = arguments.launch(arguments)
    return code
