"""`transfusion launch gke`: the JobSet against the API's own models, and what becomes of what is there."""

import json
import re

import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2FailurePolicyRule, JobsetV1alpha2JobSet

from drills.process import ROOT
from transfusion_jax.cli import main
from transfusion_jax.launching.policy import STOP

TRAIN = [
    "--",
    "train",
    "--config",
    "configs/paper.py:7b",
    "--config.data.sources=synthetic",
    "--workdir",
    "gs://bucket/run",
]
GKE = ["launch", "gke", "--topology=v5e:16x16", "--image=registry/image:1"]
OPTIONS = [
    ["--topology=v5e:16x16"],
    [
        "--topology=v5e:4x4",
        "--slices=4",
        "--queue=ours",
        "--spot",
        "--env=A=1",
        "--env=B=",
        "--service-account=us",
    ],
    ["--topology=v5p-128", "--reservation=r", "--name=n", "--grace=7", "--restarts=0", "--namespace=team"],
    ["--topology=2xv6e:2x4"],
    ["--topology=v6e:1x1"],
]


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_job_set_is_one_that_its_api_knows(options, capsys):
    manifest = dry_run(options, capsys)
    # Unknown fields are lost on this way, and wrong types are refused.
    assert JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest
    actions = JobsetV1alpha2FailurePolicyRule.model_fields["action"].description
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        assert re.search(rf"\b{rule['action']}\b", actions)
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])


def test_yaml_and_json_are_the_same_and_a_name_with_its_suffixes_is_short_enough(capsys):
    long = ["--name=" + 40 * "n", "--topology=v5e:16x16"]
    as_json = dry_run(long, capsys)
    assert main(["launch", "gke", *long, "--image=i", "--dry-run", *TRAIN]) == 0
    as_yaml = yaml.safe_load(capsys.readouterr().out)
    assert as_yaml["spec"]["failurePolicy"] == as_json["spec"]["failurePolicy"]
    assert len(f"{as_yaml['metadata']['name']}-slice-99-9999-abcde") <= 63


@pytest.mark.parametrize(
    ("topology", "slices", "hosts", "chips", "label"),
    [
        ("v5e:16x16", 1, 64, 4, "16x16"),
        ("v5p-128", 1, 16, 4, "4x4x4"),
        ("2xv6e:4x4", 2, 4, 4, "4x4"),
        ("v6e:2x4", 1, 2, 4, "2x4"),
        ("v5e:1x1", 1, 1, 1, "1x1"),
    ],
)
def test_slices_hosts_and_chips(topology, slices, hosts, chips, label, capsys):
    replicated = dry_run([f"--topology={topology}"], capsys)["spec"]["replicatedJobs"][0]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (slices, hosts, hosts)
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == label


@pytest.mark.parametrize(
    ("code", "action"),
    [
        *((code, "FailJobSet") for code in STOP),
        (75, "RestartJobSetAndIgnoreMaxRestarts"),
        *((code, "RestartJobSet") for code in (1, 76, 134, 137)),
    ],
)
def test_what_becomes_of_a_pod_that_ends_with_a_code(code, action, capsys):
    spec = dry_run(["--topology=v5e:4x4"], capsys)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0  # any other failure fails the Job at once, for another reason
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # as podFailurePolicy asks for
    assert what_becomes(spec, job, lambda rule: code in rule.get("onExitCodes", {}).get("values", [])) == action


def test_an_eviction_restarts_without_being_counted(capsys):
    spec = dry_run(["--topology=v5e:4x4"], capsys)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    evicted = what_becomes(spec, job, lambda rule: "onPodConditions" in rule)
    assert evicted == "RestartJobSetAndIgnoreMaxRestarts"


def test_the_same_command_twice_starts_one_job(standin, capsys):
    assert main([*GKE, *TRAIN]) == 0
    assert "submitted train-run-e69e69: v5e:16x16" in capsys.readouterr().out
    assert standin.verbs() == ["get", "apply"]
    assert main([*GKE, *TRAIN]) == 0
    assert "train-run-e69e69 is already there; nothing was submitted" in capsys.readouterr().out
    assert standin.verbs() == ["get"]

    assert main([*GKE, "--env=A=1", *TRAIN]) == 2
    assert "train-run-e69e69 exists with another command or other machines" in capsys.readouterr().err
    standin.change(lambda job: job.update(status={"terminalState": "Completed"}))
    assert main([*GKE, *TRAIN]) == 0
    assert "train-run-e69e69 is done; nothing was submitted" in capsys.readouterr().out
    standin.verbs()
    standin.change(lambda job: job.update(status={"terminalState": "Failed"}))
    assert main([*GKE, *TRAIN]) == 0
    assert standin.verbs() == ["get", "delete", "apply"]


def test_a_cluster_that_does_not_answer_is_one_sentence(standin, capsys):
    standin.break_down()
    assert main([*GKE, *TRAIN]) == 2
    assert capsys.readouterr().err == "transfusion: kubectl get jobset failed: ERROR: the service is not there\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*GKE, *TRAIN], "this machine has no kubectl: install it"),
        ([*GKE, "--json", *TRAIN], "--json goes with --dry-run"),
        ([*GKE, *TRAIN[:-1], "runs/here"], "train needs --workdir gs://BUCKET/FOLDER"),
        ([*GKE, *TRAIN[:-2]], "train needs --workdir gs://BUCKET/FOLDER"),
        ([*GKE, "--slices=0", *TRAIN], "--slices: 0 must be at least 1"),
        ([*GKE, "--topology=2xv5e:4x4", "--slices=2", *TRAIN], "names its slices already"),
        ([*GKE, "--topology=h100:8x4", *TRAIN], "for GPUs: launch slurm"),
        ([*GKE, "--topology=v5e:3x3", *TRAIN], "does not fill hosts of 4 chips"),
        ([*GKE, "--topology=v5e:8x16", "--slices=8", *TRAIN], "batch_rows 512 in 1 part(s) cannot be split"),
        ([*GKE, *TRAIN[:4], *TRAIN[-2:]], "names no data"),
        ([*GKE, "--topology=v5x:4x4", *TRAIN], "unknown chip v5x"),
    ],
)
def test_what_cannot_be_launched_is_one_sentence(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def dry_run(options, capsys):
    """The JobSet, as JSON has it."""
    assert main(["launch", "gke", *options, "--image=registry/image:1", "--dry-run", "--json", *TRAIN]) == 0
    return json.loads(capsys.readouterr().out)


def what_becomes(spec, job, matches):
    """The JobSet's action after a pod failure, as the two controllers find it."""
    place = next((n for n, rule in enumerate(job["podFailurePolicy"]["rules"]) if matches(rule)), None)
    if place is None:
        reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    else:
        reason, message = "PodFailurePolicy", f"Container train failed, matching FailJob rule at index {place}"
    for rule in spec["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"
