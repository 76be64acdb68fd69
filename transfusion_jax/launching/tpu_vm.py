"""`launch tpu-vm`: TPU VMs by a queued resource, whose hosts run the command in a container under systemd.

The startup script, which a TPU VM runs at every boot, writes a systemd service. systemd starts the command again
after exit codes that mean so, on each host by itself: the processes of the next try find each other as before.

Sources: https://docs.cloud.google.com/tpu/docs/queued-resources, and systemd.service(5).
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transfusion_jax.errors import UserError
from transfusion_jax.launching.job import (
    Job,
    make_job,
    refuse,
    require_bucket,
)
from transfusion_jax.launching.policy import STOP
from transfusion_jax.launching.tools import attempt, output, require_tool, says
from transfusion_jax.launching.tpu_types import Slices, slices

RESOURCES = ("gcloud", "compute", "tpus", "queued-resources")
LABEL = "transfusion-command"  # tells whether a queued resource of the name is this job
ENDED = ("FAILED", "SUSPENDED")  # nothing will come of it any more: SUSPENDED is what a preempted one becomes
ENDING = ("SUSPENDING", "DELETING")
STARTUP_FILE = "--metadata-from-file=startup-script="
STARTUP = r"""#!/usr/bin/env bash
set -euo pipefail
gcloud auth configure-docker --quiet {registry}
docker pull {image}
cat >/usr/local/bin/transfusion-job <<'JOB'
#!/usr/bin/env bash
docker rm --force transfusion 2>/dev/null
exec docker run --name transfusion --rm --privileged --net=host --ipc=host {variables}{image} {command}
JOB
chmod +x /usr/local/bin/transfusion-job
cat >/etc/systemd/system/transfusion.service <<'UNIT'
[Unit]
Description={name}
After=docker.service
Requires=docker.service
StartLimitIntervalSec=infinity
StartLimitBurst={starts}

[Service]
ExecStart=/usr/local/bin/transfusion-job
Restart=on-failure
RestartSec=10
RestartPreventExitStatus={stop}
KillMode=mixed
TimeoutStopSec={grace}
UNIT
systemctl daemon-reload
systemctl start transfusion
"""


def launch(arguments: argparse.Namespace) -> int:
    """Creates the queued resource, and says how to follow it."""
    machines = slices(arguments, one_host_of_eight=True)
    job = make_job(arguments, machines.hosts * machines.count, machines.topology)
    require_bucket(job, "TPU VMs")
    script = startup_script(job, arguments.image)
    place = [f"--zone={arguments.zone}", *([f"--project={arguments.project}"] if arguments.project else [])]
    create = _create(job, machines, arguments, place)
    fingerprint = job.fingerprint(script=script, create=create)
    create.append(f"--labels={LABEL}={fingerprint}")
    if arguments.dry_run:
        create.append(f"{STARTUP_FILE}startup.sh")
        print(f"cat >startup.sh <<'STARTUP'\n{script}STARTUP\n{shlex.join(create)}")
        return 0
    require_tool("gcloud", "install the Google Cloud CLI")
    if not _make_room(job, machines, place, script, fingerprint):
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "startup.sh"
        path.write_text(script)
        output(*create, f"{STARTUP_FILE}{path}")
    node = f"{job.name}-0" if machines.count > 1 else job.name
    ssh = shlex.join(["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, "--worker=0", *place])
    delete = shlex.join([*RESOURCES, "delete", job.name, "--force", *place])
    print(f"queued {job.name}: {machines.topology.describe()}")
    print(f"to follow it: {ssh} --command='journalctl --follow --unit=transfusion'")
    print(f"the machines are billed until they are deleted: {delete}")
    return 0


def startup_script(job: Job, image: str) -> str:
    """What every host runs when it boots, as root."""
    variables = "".join(f"--env {shlex.quote(f'{key}={value}')} " for key, value in job.environment.items())
    return STARTUP.format(
        registry=shlex.quote(image.partition("/")[0]),
        image=shlex.quote(image),
        variables=variables,
        command=job.shell_command,
        name=job.name,
        starts=job.restarts + 1,
        stop=" ".join(map(str, STOP)),
        grace=job.grace,
    )


def _create(job: Job, machines: Slices, arguments: argparse.Namespace, place: Sequence[str]) -> list[str]:
    """The command that books the machines, without its label and the startup script."""
    many = [f"--node-count={machines.count}", f"--node-prefix={job.name}"]
    chosen = {"--spot": arguments.spot, "--reserved": arguments.reserved}
    account = arguments.service_account
    return [
        *(*RESOURCES, "create", job.name, *place),
        *(many if machines.count > 1 else [f"--node-id={job.name}"]),
        f"--accelerator-type={machines.booking}",
        f"--runtime-version={arguments.runtime or machines.names.runtime}",
        *(option for option, wanted in chosen.items() if wanted),
        *([f"--service-account={account}"] if account else []),
        "--async",
    ]


def _make_room(job: Job, machines: Slices, place: Sequence[str], script: str, fingerprint: str) -> bool:
    """Whether the queued resource is to be created; one of its name of which nothing will come is deleted.

    Raises:
        ConfigError: one of that name runs something else.
        UserError: it is just being deleted, or the service cannot be asked.
    """
    found = attempt(*RESOURCES, "describe", job.name, *place, "--format=json")
    if found.returncode:
        if "NOT_FOUND" in found.stderr:
            return True
        raise UserError(f"gcloud failed: {says(found)}")
    existing = json.loads(found.stdout)
    state = existing["state"]["state"]
    if state in ENDED:
        print(f"{job.name} is {state}: it is deleted and queued again")
        output(*RESOURCES, "delete", job.name, *place, "--force", "--quiet")
        return True
    if state in ENDING:
        raise UserError(f"{job.name} is {state}: run the same command once that is done")
    node = existing["tpu"]["nodeSpec"][0]["node"]
    if node.get("labels", {}).get(LABEL) != fingerprint:
        there, booking = node.get("metadata", {}).get("startup-script", ""), node.get("acceleratorType", "")
        delete = shlex.join([*RESOURCES, "delete", job.name, "--force", *place])
        asked = f"{machines.booking}\n{script}"
        refuse(job.name, f"{booking}\n{there}" if there else "", asked, delete)
    print(f"{job.name} is already there, {state}; nothing was queued")
    return False
