"""`transfusion launch`: runs another command on many hosts, or with --dry-run prints what would be run."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from transfusion_jax.config import require
from transfusion_jax.launching import gke, local, slurm, tpu_vm

TARGETS: dict[str, Callable[[argparse.Namespace], int]] = {
    "local": local.launch,
    "slurm": slurm.launch,
    "gke": gke.launch,
    "tpu-vm": tpu_vm.launch,
}


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Launches, and returns the exit code: for `local` the job's, elsewhere that of submitting it."""
    require(not overrides, "--config.… is an option of the command that stands after --")
    require(
        arguments.command, "launch needs -- and a command after it, such as -- train --config configs/debug.py …"
    )
    require(arguments.command[0] != "launch", "launch cannot launch itself")
    return TARGETS[arguments.target](arguments)
