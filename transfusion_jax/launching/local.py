"""`launch local`: processes of this machine that find each other as hosts would."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import socket
import sys

from transfusion_jax.config import require
from transfusion_jax.launching.job import Job, make_job
from transfusion_jax.launching.policy import combine_codes, restarts
from transfusion_jax.launching.supervisor import Events, ProcessProgram, run_together, take_signals

DEVICES = "--xla_force_host_platform_device_count"


def launch(arguments: argparse.Namespace) -> int:
    """Runs the job to its end and returns its exit code."""
    require(arguments.dry_run or not arguments.json, "--json goes with --dry-run")
    job = make_job(arguments, arguments.processes)
    if arguments.dry_run:
        _print(_programs(job, arguments), job, arguments.json)
        return 0
    with take_signals() as events:
        return _run(job, arguments, events)


def _run(job: Job, arguments: argparse.Namespace, events: Events) -> int:
    for again in range(job.restarts + 1):
        ends, asked = run_together(_programs(job, arguments), job.grace, events, _say)
        code = combine_codes([end.code for end in ends])
        if asked or not restarts(code):
            break
        if again < job.restarts:
            _say(f"exit code {code}: restart {again + 1} of {job.restarts}")
    return code


def _programs(job: Job, arguments: argparse.Namespace) -> list[ProcessProgram]:
    """One program per process, with a coordinator at a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = {**os.environ, **job.environment}.get("XLA_FLAGS", "")
    others = re.sub(rf"{DEVICES}=\d+", "", flags).strip()
    shared = {
        **job.environment,
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": coordinator,
        "JAX_NUM_PROCESSES": str(arguments.processes),
        "XLA_FLAGS": f"{others} {DEVICES}={arguments.devices_per_process}".strip(),
    }
    words = [sys.executable, "-u", "-m", "transfusion_jax.cli", *job.command]
    return [
        ProcessProgram(words, {**shared, "JAX_PROCESS_ID": str(number)}) for number in range(arguments.processes)
    ]


def _print(programs: list[ProcessProgram], job: Job, as_json: bool) -> None:
    if as_json:
        processes = [{"command": list(program.words), "environment": program.environment} for program in programs]
        print(json.dumps({"processes": processes, "grace": job.grace, "restarts": job.restarts}, indent=2))
        return
    for program in programs:
        print(" ".join(f"{key}={shlex.quote(value)}" for key, value in program.environment.items()), end=" ")
        print(shlex.join(program.words))


def _say(line: str) -> None:
    print(f"transfusion: {line}", file=sys.stderr, flush=True)
