"""A stand-in for kubectl or gcloud: keeps what was created in a file, notes how it was called, and fails on demand.

The services behind the real ones cannot be had in a test. It is put on PATH under their names, with STANDIN naming
a folder.
"""

import json
import os
import sys
from pathlib import Path

folder = Path(os.environ["STANDIN"])
existing = folder / "existing.json"
words = sys.argv[1:]
verb = next(word for word in words if word in ("get", "apply", "delete", "describe", "create"))
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([verb, *words]) + "\n")
if (folder / "broken").exists():
    sys.exit("ERROR: the service is not there\nto mend that, read on")
if verb in ("get", "describe"):
    if not existing.exists():
        sys.exit('Error from server (NotFound): jobsets "train-run" not found, NOT_FOUND')
    print(existing.read_text())
elif verb == "delete":
    existing.unlink()
elif verb == "apply":
    import yaml

    existing.write_text(json.dumps(yaml.safe_load(sys.stdin)))
else:
    options = dict(word.partition("=")[::2] for word in words)
    labels = dict([options["--labels"].split("=")])
    (folder / "startup").write_text(Path(options["--metadata-from-file"].partition("=")[2]).read_text())
    about = {"state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": [{"node": {"labels": labels}}]}}
    existing.write_text(json.dumps(about))
