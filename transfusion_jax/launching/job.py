"""What is launched: a command, its name, its environment, and how it ends; the same for every target."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from transfusion_jax import config as configs
from transfusion_jax.config import Config, ConfigError, Run, require
from transfusion_jax.data.datasets import require_sources
from transfusion_jax.launching.grace import grace_seconds
from transfusion_jax.planning.plan import on_mesh
from transfusion_jax.planning.topology import Topology
from transfusion_jax.storage.paths import BUCKETS, place
from transfusion_jax.training.run_dir import Workdir

LONGEST_NAME = 40  # characters: Kubernetes adds to it and stops at 63
HASH = 6  # characters that tell apart what has the same words in its name
SHOWN = 12  # lines that differ between two jobs
OVERRIDE = "--config."


@dataclass(frozen=True)
class Job:
    """A command to be run by every process of a job.

    Attributes:
        command: the words after `transfusion`.
        name: letters, digits and dashes; what makes two jobs the same one.
        environment: variables for every process.
        grace: seconds from the signal that ends the job to the kill.
        restarts: how often it is started again, at most.
    """

    command: tuple[str, ...]
    name: str
    environment: Mapping[str, str]
    grace: int
    restarts: int

    @property
    def workdir(self) -> str | None:
        """Where the command keeps its run, as it was given."""
        return option(self.command, "--workdir")

    @property
    def shell_command(self) -> str:
        """`transfusion` and the words, quoted."""
        return shlex.join(["transfusion", *self.command])

    def fingerprint(self, **settings: object) -> str:
        """A short hash of the job and of what a target adds to it: tells one command from another of that name."""
        text = json.dumps([asdict(self), settings], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_job(arguments: argparse.Namespace, hosts: int, topology: Topology | None = None) -> Job:
    """The job of a command line, whose config's mesh has to fit the topology where that is known.

    Raises:
        ConfigError: the command, its config or an option cannot be honoured.
    """
    command = tuple(arguments.command)
    config = _config(command)
    if isinstance(config, Config):
        require_sources(config)
        if topology is not None:
            on_mesh(config, topology)
    grace = grace_seconds(config, hosts) if arguments.grace is None else arguments.grace
    return Job(
        command,
        _name(getattr(arguments, "name", None), command),
        _environment(arguments.env),
        grace,
        arguments.restarts,
    )


def refuse(name: str, there: str, asked: str, advice: str) -> NoReturn:
    """Raises ConfigError for a job whose name another one has; it says what differs.

    Args:
        name: of both.
        there: what is there, line by line; empty where that cannot be read.
        asked: the job to be submitted.
        advice: how the other one is ended.
    """
    compared = difflib.unified_diff(there.splitlines(), asked.splitlines(), lineterm="", n=0) if there else ()
    lines = [line for line in compared if not line.startswith(("---", "+++", "@@"))]
    more = [f"and {len(lines) - SHOWN} lines more"] if len(lines) > SHOWN else []
    raise ConfigError(
        f"{name} exists with another command or other machines; nothing was submitted: choose --name, or end "
        f"it: {advice}" + "".join(f"\n  {line}" for line in [*lines[:SHOWN], *more])
    )


def option(words: Sequence[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE`, the last one; None where it is not there."""
    found = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == name:
            found = following
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found


def require_bucket(job: Job, where: str) -> None:
    """Refuses a run that would be lost with the machines it ran on.

    Raises:
        ConfigError: the workdir is not in a bucket.
    """
    if _trains(job.command):
        require(
            (job.workdir or "").startswith("gs://"),
            f"a run on {where} outlives its machines only in a bucket: train needs --workdir gs://BUCKET/FOLDER",
        )


def _trains(command: tuple[str, ...]) -> bool:
    return command[0] == "train" or command[:2] == ("autoencoder", "train")


def _config(command: tuple[str, ...]) -> Run | None:
    """The config that a run will take, so that a mistake in it is found before anything is booked."""
    if not _trains(command):
        return None
    overrides = [word.removeprefix(OVERRIDE) for word in command if word.startswith(OVERRIDE)]
    if spec := option(command, "--config"):
        return configs.load_run(spec, overrides)
    workdir = option(command, "--workdir")
    if workdir and "://" not in workdir and Workdir(Path(workdir)).exists():
        return configs.override(Workdir(Path(workdir)).run(), overrides)
    return None


def _name(given: str | None, command: tuple[str, ...]) -> str:
    if given is not None:
        require(
            re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", given) is not None and len(given) <= LONGEST_NAME,
            f"--name {given} must be at most {LONGEST_NAME} of a-z, 0-9 and -, and begin with a letter",
        )
        return given
    workdir = option(command, "--workdir")
    whole = _absolute(workdir) if workdir else shlex.join(command)
    folder = whole.rpartition("/")[2] if workdir else ""
    words = re.sub(r"[^a-z0-9]+", "-", f"{command[0]}-{folder}".lower()).strip("-")
    end = hashlib.sha256(whole.encode()).hexdigest()[:HASH]  # many workdirs have the same last name
    return f"{words[: LONGEST_NAME - HASH - 1].strip('-')}-{end}"


def _absolute(workdir: str) -> str:
    return str(place(workdir)) if workdir.startswith(f"{BUCKETS}:") else os.path.abspath(workdir)


def _environment(entries: Sequence[str]) -> dict[str, str]:
    environment = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ConfigError(f"--env {entry} must be KEY=VALUE")
        require("\n" not in value, f"--env {key} must be one line")
        environment[key] = value
    return environment
