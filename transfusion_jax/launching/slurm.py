"""`launch slurm`: a batch script that saves before it is ended, and puts itself back into the queue."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from transfusion_jax.config import require
from transfusion_jax.errors import INTERRUPTED
from transfusion_jax.launching.job import Job, make_job, refuse
from transfusion_jax.launching.policy import STOP
from transfusion_jax.launching.tools import output, require_tool
from transfusion_jax.storage.atomic import write_whole

THERE = "configuring,pending,running,suspended"  # one that is ending may be followed by the next
LONGEST_GRACE = 65535  # seconds: sbatch takes no more

# scancel tells this shell as well as the tasks, and then waits KillWait; preemption and a time limit that is near
# tell the tasks alone. Every task notes its own exit code, since srun gives only the highest of all.
SCRIPT = r"""
# shellcheck disable=SC2016  # what stands in single quotes is for the tasks' shells, or is plain text
set -uo pipefail
record={logs}/slurm-$SLURM_JOB_ID
rm -rf "$record/codes"
mkdir -p "$record/codes"
cancelled=
trap 'cancelled=yes' TERM
{exports}
srun --label --kill-on-bad-exit=0 --wait={grace} bash -c '
    trap : TERM INT
    "${{@:2}}"
    code=$?
    echo "$code" >"$1/$SLURM_PROCID"
    exit "$code"
' task "$record/codes" {command}
code=$?

codes=$(cat "$record"/codes/*)
for final in {stop}; do
    if grep -qx "$final" <<<"$codes"; then
        echo "exit code $final: see what is above; running this again would change nothing"
        exit "$final"
    fi
done
((code == 0)) && exit 0
if [[ $cancelled ]]; then
    echo "cancelled; the same launch command goes on"
    exit "$code"
fi
if ! grep -qx {interrupted} <<<"$codes"; then
    failures=$(($(cat "$record/failures" 2>/dev/null || echo 0) + 1))
    echo "$failures" >"$record/failures"
    if ((failures > {restarts})); then
        echo "exit code $code, for the ${{failures}}th time: not run again"
        exit "$code"
    fi
fi
echo "exit code $code: back into the queue"
scontrol requeue "$SLURM_JOB_ID"
"""


def launch(arguments: argparse.Namespace) -> int:
    """Submits the job and says under which number."""
    require(not arguments.per_gpu or arguments.gpus_per_node, "--per-gpu needs --gpus-per-node N")
    job = make_job(arguments, arguments.nodes)
    require(job.grace <= LONGEST_GRACE, f"Slurm takes at most --grace {LONGEST_GRACE}, not {job.grace}")
    logs = _logs(arguments, job)
    script = batch_script(job, arguments, logs)
    if arguments.dry_run:
        print(script, end="")
        return 0
    require_tool("sbatch", "run this where jobs are submitted, such as the cluster's login node")
    if not _has_room(job.name, script):
        return 0
    path = logs / f"{job.name}.sbatch"
    write_whole(path, script)
    number = output("sbatch", "--parsable", str(path)).partition(";")[0].strip()
    print(f"submitted {job.name} as job {number}; it logs to {logs}/slurm-{number}.log and is described in {path}")
    return 0


def _has_room(name: str, script: str) -> bool:
    """Whether the job is to be submitted: not where it is queued or running already.

    Raises:
        ConfigError: another job has the name.
    """
    mine = ("--me", f"--name={name}", f"--states={THERE}")
    for line in output("squeue", "--noheader", "--format=%i %T", *mine).splitlines():
        number, state = line.split()
        there = output("scontrol", "write", "batch_script", number, "-")
        if there != script:
            refuse(name, there, script, f"scancel {number}")
        print(f"job {name} is already there: {number} is {state}; nothing was submitted")
        return False
    return True


def batch_script(job: Job, arguments: argparse.Namespace, logs: Path) -> str:
    """The whole script."""
    tasks = arguments.gpus_per_node if arguments.per_gpu else arguments.tasks_per_node
    options = {
        "job-name": job.name,
        "dependency": "singleton",
        "nodes": arguments.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": arguments.gpus_per_node,
        "partition": arguments.partition,
        "time": arguments.time,
        "signal": f"TERM@{job.grace}",
        "chdir": Path.cwd(),
        "output": f"{logs}/slurm-%j.log",
    }
    lines = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    header = "".join(f"#SBATCH {line}\n" for line in [*lines, "--open-mode=append", "--requeue", *arguments.sbatch])
    body = SCRIPT.format(
        logs=shlex.quote(str(logs)),
        exports="".join(f"export {key}={shlex.quote(value)}\n" for key, value in job.environment.items()),
        grace=job.grace,
        command=shlex.join([sys.executable, "-u", "-m", "transfusion_jax.cli", *job.command]),
        stop=" ".join(map(str, STOP)),
        interrupted=INTERRUPTED,
        restarts=job.restarts,
    )
    return f"#!/usr/bin/env bash\n{header}{body}"


def _logs(arguments: argparse.Namespace, job: Job) -> Path:
    if arguments.logs is not None:
        return Path(arguments.logs).absolute()
    local = job.workdir is not None and "://" not in job.workdir
    return Path(job.workdir).absolute() / "logs" if local and job.workdir else Path.cwd() / "logs" / job.name
