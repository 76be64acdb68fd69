"""The commands of the pages on launching are ones that launch something, and what lies beside them is sound."""

import re
import shlex

import pytest
import yaml

from drills.process import ROOT
from transfusion_jax.cli import main
from transfusion_jax.commands.launch import TARGETS

PAGES = [ROOT / "docs/operations.md", *sorted((ROOT / "launch").glob("*/README.md"))]
BLOCK = re.compile(r"^```\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page):
    """Every `transfusion launch` of a page, as words."""
    blocks = "".join(BLOCK.findall(page.read_text())).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in blocks.splitlines() if line.startswith("transfusion launch")]


@pytest.mark.parametrize("words", [words for page in PAGES for words in commands(page)], ids=" ".join)
def test_a_command_of_a_page_can_be_launched(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main([*words[:2], "--dry-run", *words[2:]]) == 0, capsys.readouterr().err


def test_every_target_has_a_page_with_a_command():
    for target in TARGETS:
        assert any(words[1] == target for words in commands(ROOT / f"launch/{target}/README.md")), target


def test_the_queue_has_the_room_and_the_nodes_of_the_page_s_job(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    command = commands(ROOT / "launch/gke/README.md")[0]
    assert main([*command[:2], "--dry-run", *command[2:]]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    flavor, cluster, queue = yaml.safe_load_all((ROOT / "launch/gke/queues.yaml").read_text())
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    assert queue["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    room = cluster["spec"]["resourceGroups"][0]["flavors"][0]
    assert room["name"] == flavor["metadata"]["name"]
    replicated = job["spec"]["replicatedJobs"][0]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert flavor["spec"]["nodeLabels"].items() <= pod["nodeSelector"].items()
    pods = replicated["replicas"] * replicated["template"]["spec"]["parallelism"]
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert room["resources"] == [{"name": "google.com/tpu", "nominalQuota": pods * chips}]
