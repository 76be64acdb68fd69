"""`transfusion launch`: runs another command on many hosts, or with --dry-run prints what would be run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from transfusion_jax.commands.flags.parser import between

EPILOG = (
    "After -- stands any other command, as in: "
    "transfusion launch local --processes 4 -- train --config configs/debug.py --workdir runs/debug"
)
MANY = between(1, 1000)  # on one machine


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the targets and their options."""
    parser.epilog = EPILOG
    targets = parser.add_subparsers(metavar="TARGET", required=True)
    for name, (declare_target, text, description) in TARGETS.items():
        target = targets.add_parser(name, help=text, description=description, epilog=EPILOG)
        target.usage = f"{target.prog} [OPTION…] -- COMMAND…"
        declare_target(target)
        target.set_defaults(target=name)
    parser.set_defaults(run="launch:run", takes_overrides=True)


def _local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=MANY, default=2, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--devices-per-process",
        type=MANY,
        default=1,
        metavar="N",
        help="CPU devices of each (default: %(default)s)",
    )
    add_job(parser, restarts=0)
    parser.add_argument("--json", action="store_true", help="with --dry-run: print one JSON object")


def _slurm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=between(1), default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--gpus-per-node", type=between(1), metavar="N", help="GPUs of each node")
    tasks = parser.add_mutually_exclusive_group()
    tasks.add_argument(
        "--tasks-per-node",
        type=between(1),
        default=1,
        metavar="N",
        help="processes of each node (default: %(default)s)",
    )
    tasks.add_argument(
        "--per-gpu", action="store_true", help="one process for each GPU instead of one for each node"
    )
    parser.add_argument("--partition", help="where it runs (default: the cluster's choice)")
    parser.add_argument("--time", metavar="LIMIT", help="as sbatch takes it, such as 24:00:00 or 7-0")
    parser.add_argument(
        "--sbatch", metavar="OPTION", action="append", default=[], help="passed on, such as --sbatch=--account=NAME"
    )
    parser.add_argument("--logs", metavar="DIR", type=Path, help="of the log (default: WORKDIR/logs)")
    add_name(parser)
    add_job(parser, restarts=10)


def _gke(parser: argparse.ArgumentParser) -> None:
    _add_slices(parser)
    parser.add_argument("--queue", help="Kueue's LocalQueue (default: started as soon as there is room)")
    parser.add_argument("--namespace", default="default", help="(default: %(default)s)")
    parser.add_argument("--service-account", help="of Kubernetes, with access to the buckets")
    capacity = parser.add_mutually_exclusive_group()
    capacity.add_argument("--spot", action="store_true", help="on Spot VMs")
    capacity.add_argument("--reservation", metavar="NAME", help="on reserved capacity")
    add_name(parser)
    add_job(parser, restarts=10)
    parser.add_argument("--json", action="store_true", help="with --dry-run: print JSON instead of YAML")


def _tpu_vm(parser: argparse.ArgumentParser) -> None:
    _add_slices(parser)
    parser.add_argument("--zone", required=True, help="such as us-west4-a")
    parser.add_argument("--project", help="(default: gcloud's)")
    parser.add_argument(
        "--runtime", metavar="VERSION", help="software of the VMs (default: the usual one of the chip)"
    )
    parser.add_argument("--service-account", help="of Google Cloud, with access to the buckets")
    capacity = parser.add_mutually_exclusive_group()
    capacity.add_argument("--spot", action="store_true", help="on Spot VMs")
    capacity.add_argument("--reserved", action="store_true", help="on reserved capacity")
    add_name(parser)
    add_job(parser, restarts=100)


TARGETS: dict[str, tuple[Callable, str, str]] = {  # by name: options, help, and what --help says
    "local": (
        _local,
        "processes on this machine's CPU, as if each were a host",
        "Starts processes on this machine's CPU that find each other as the hosts of a cluster would.",
    ),
    "slurm": (_slurm, "a Slurm job", "Submits a Slurm job, unless it is queued or running already."),
    "gke": (
        _gke,
        "a JobSet on Google Kubernetes Engine",
        "Applies a JobSet to the cluster that kubectl points at, unless it is there already.",
    ),
    "tpu-vm": (
        _tpu_vm,
        "TPU VMs by a queued resource",
        "Queues for TPU VMs and runs the command on them; a queued resource that was preempted or has failed is "
        "deleted and queued again, and one that is there already is left alone.",
    ),
}


def add_job(parser: argparse.ArgumentParser, restarts: int) -> None:
    """The options that every target has."""
    parser.add_argument(
        "--env",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a variable for every process; may be repeated",
    )
    parser.add_argument(
        "--restarts",
        type=between(0),
        default=restarts,
        metavar="N",
        help="start again at most N times after exit codes that mean so (default: %(default)s)",
    )
    parser.add_argument(
        "--grace",
        type=between(1),
        metavar="SECONDS",
        help="between the signal to end and the kill (default: from the checkpoint's size)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and stop")


def add_name(parser: argparse.ArgumentParser) -> None:
    """`--name`, where jobs have names."""
    parser.add_argument(
        "--name", help="of the job: one of a name runs at a time (default: from the command and its workdir)"
    )


def _add_slices(parser: argparse.ArgumentParser) -> None:
    """`--topology`, `--slices` and `--image`."""
    parser.add_argument("--topology", required=True, help="of one slice, such as v5e:16x16, v5p:4x4x4 or v6e-256")
    parser.add_argument("--slices", type=between(1), default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--image", required=True, help="built from launch/Dockerfile with LOCK=tpu, and pushed")
