"""A stand-in for kubectl, gcloud and Slurm: keeps each job that was created in a file, notes how it was called, and
fails on demand.

The services behind the real ones cannot be had in a test. It is put on PATH under their names, which come before
their words, with STANDIN naming a folder.
"""

import json
import os
import re
import sys
from pathlib import Path

VERBS = "get", "apply", "delete", "describe", "create", "squeue", "scontrol", "sbatch"
folder = Path(os.environ["STANDIN"])
words = sys.argv[1:]
verb = next(word for word in words if word in VERBS)
after = words[words.index(verb) + 1 :]


def job(name):
    return folder / f"job-{name}.json"


with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([verb, *words]) + "\n")
if (folder / "broken").exists():
    sys.exit("ERROR: the service is not there\nto mend that, read on")
if words[0] == "kubectl":
    if verb == "apply":
        import yaml

        applied = yaml.safe_load(sys.stdin)
        about = json.loads(json.dumps(applied))
        about["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = json.dumps(applied)
        job(about["metadata"]["name"]).write_text(json.dumps(about))
        sys.exit()
    existing = job(after[1])  # get or delete jobset NAME
elif words[0] == "gcloud":
    existing = job(after[0])
elif verb == "sbatch":
    script = Path(after[-1]).read_text()
    name = re.search(r"^#SBATCH --job-name=(\S+)$", script, re.M).group(1)
    job(name).write_text(json.dumps(script))
    print(len(list(folder.glob("job-*"))))
    sys.exit()
elif verb == "squeue":
    (name,) = (word.partition("=")[2] for word in after if word.startswith("--name="))
    if job(name).exists():
        print(f"{sorted(folder.glob('job-*')).index(job(name))} PENDING")
    sys.exit()
else:  # scontrol write batch_script N -
    print(json.loads(sorted(folder.glob("job-*"))[int(after[-2])].read_text()), end="")
    sys.exit()

if verb in ("get", "describe"):
    if not existing.exists():
        sys.exit(f'Error from server (NotFound): jobsets "{after[1]}" not found, NOT_FOUND')
    print(existing.read_text())
elif verb == "delete":
    existing.unlink()
else:
    options = dict(word.partition("=")[::2] for word in words)
    script = Path(options["--metadata-from-file"].partition("=")[2]).read_text()
    node = {"labels": dict([options["--labels"].split("=")]), "acceleratorType": options["--accelerator-type"]}
    node["metadata"] = {"startup-script": script}
    existing.write_text(json.dumps({"state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": [{"node": node}]}}))
