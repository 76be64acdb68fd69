"""`launch gke`: a JobSet of TPU slices on Google Kubernetes Engine, queued by Kueue where a queue is named.

Every pod failure ends its Job at once (`backoffLimit: 0`), since no process can go on without the others, and the
JobSet then starts all slices again. Rules tell three cases apart. Exit codes that no other start can mend fail the
whole. A save after a signal (75) or an eviction restarts without being counted. Anything else counts as one of
`--restarts`. A Job gives both of the first two the reason `PodFailurePolicy`; only the message names the rule, and
reading messages takes JobSet 0.10.

Sources: the API of JobSet, https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2, and "Pod failure policy",
https://kubernetes.io/docs/concepts/workloads/controllers/job.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import yaml

from transfusion_jax.config import ConfigError
from transfusion_jax.errors import INTERRUPTED, UserError
from transfusion_jax.launching.job import (
    Job,
    make_job,
    refuse,
    require_bucket,
)
from transfusion_jax.launching.policy import STOP
from transfusion_jax.launching.tools import attempt, output, require_tool, says
from transfusion_jax.launching.tpu_types import Slices, slices

FINGERPRINT = "transfusion-jax/command"  # annotation: tells whether a job of the name is this one
APPLIED = "kubectl.kubernetes.io/last-applied-configuration"  # annotation of kubectl's own: what was applied
QUEUE = "kueue.x-k8s.io/queue-name"
SPOT = "cloud.google.com/gke-spot"
ADVICE = "install it (gcloud components install kubectl), and gcloud container clusters get-credentials CLUSTER"
POD_RULES = [  # a rule's place in this list stands in the message of a Job that it failed
    {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": list(STOP)}},
    {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [INTERRUPTED]}},
    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
]
SET_RULES = [
    {
        "name": name,
        "action": action,
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": [f"rule at index {places}"],
    }
    for name, action, places in (
        ("stop", "FailJobSet", "0"),
        ("preempted", "RestartJobSetAndIgnoreMaxRestarts", "[12]"),
    )
]


def launch(arguments: argparse.Namespace) -> int:
    """Applies the JobSet, and says how to follow it."""
    if arguments.json and not arguments.dry_run:
        raise ConfigError("--json goes with --dry-run")
    machines = slices(arguments, one_host_of_eight=False)
    job = make_job(arguments, machines.hosts * machines.count, machines.topology)
    require_bucket(job, "GKE")
    manifest = jobset(job, machines, arguments)
    if arguments.dry_run:
        print(
            json.dumps(manifest, indent=2) if arguments.json else yaml.safe_dump(manifest, sort_keys=False).rstrip()
        )
        return 0
    require_tool("kubectl", ADVICE)
    place = ("--namespace", arguments.namespace)
    if not _make_room(manifest, place):
        return 0
    output("kubectl", "apply", *place, "--filename=-", stdin=yaml.safe_dump(manifest))
    log = f"kubectl logs --namespace {arguments.namespace} --follow job/{job.name}-slice-0 (the first host's)"
    print(f"submitted {job.name}: {machines.topology.describe()}\nto follow it: {log}")
    return 0


def jobset(job: Job, machines: Slices, arguments: argparse.Namespace) -> dict[str, Any]:
    """The JobSet, as plain values."""
    labels = {QUEUE: arguments.queue} if arguments.queue else {}
    one_slice_each = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            **({"labels": labels} if labels else {}),
            "annotations": one_slice_each,
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.restarts,
                "restartStrategy": "BlockingRecreate",
                "rules": SET_RULES,
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": machines.count,
                    "template": {
                        "spec": {
                            "parallelism": machines.hosts,
                            "completions": machines.hosts,
                            "completionMode": "Indexed",
                            "backoffLimit": 0,
                            "podFailurePolicy": {"rules": POD_RULES},
                            "template": {"spec": _pod(job, machines, arguments)},
                        }
                    },
                }
            ],
        },
    }
    one_slice_each[FINGERPRINT] = job.fingerprint(manifest=json.dumps(manifest, sort_keys=True))
    return manifest


def _pod(job: Job, machines: Slices, arguments: argparse.Namespace) -> dict[str, Any]:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": machines.names.gke,
        "cloud.google.com/gke-tpu-topology": machines.shape,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if arguments.spot:
        selector[SPOT] = "true"
        tolerations.append({"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    if arguments.reservation:
        selector["cloud.google.com/reservation-name"] = arguments.reservation
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [
            {
                "name": "train",
                "image": arguments.image,
                "command": ["transfusion", *job.command],
                "env": [{"name": key, "value": value} for key, value in job.environment.items()],
                "resources": {"limits": {"google.com/tpu": machines.chips_per_host}},
                "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
            }
        ],
        # Loader processes hand batches over in shared memory, of which a container has 64 MiB otherwise.
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
    }
    if arguments.service_account:
        pod["serviceAccountName"] = arguments.service_account
    if machines.count > 1:  # slices talk to each other at the speed of the hosts' own network
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return pod


def _make_room(manifest: dict[str, Any], place: tuple[str, ...]) -> bool:
    """Whether the JobSet is to be applied; one of its name that has failed, or that did something else, is deleted.

    Raises:
        ConfigError: a JobSet of that name is doing something else.
        UserError: the cluster cannot be asked.
    """
    name = manifest["metadata"]["name"]
    found = attempt("kubectl", "get", "jobset", name, *place, "--output=json")
    if found.returncode:
        if "NotFound" in found.stderr and name in found.stderr:
            return True
        raise UserError(f"kubectl get jobset failed: {says(found)}")
    existing = json.loads(found.stdout)
    state = existing.get("status", {}).get("terminalState", "")
    annotations = existing["metadata"].get("annotations", {})
    same = annotations.get(FINGERPRINT) == manifest["metadata"]["annotations"][FINGERPRINT]
    delete = ("kubectl", "delete", "jobset", name, *place)
    if same and state == "Completed":
        print(f"{name} is done; nothing was submitted (to run it again: {' '.join(delete)})")
        return False
    if not state:
        if not same:
            applied = json.loads(annotations.get(APPLIED, "{}"))
            refuse(name, _lines(applied), _lines(manifest), " ".join(delete))
        print(f"{name} is already there; nothing was submitted")
        return False
    output(*delete, "--wait")
    return True


def _lines(manifest: dict[str, Any]) -> str:
    """What a JobSet runs and on which machines, for a comparison; empty where unknown."""
    return yaml.safe_dump(manifest["spec"], width=math.inf) if manifest else ""
