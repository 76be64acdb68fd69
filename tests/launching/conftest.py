"""The programs of clusters, stood in for."""

import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def standin(tmp_path, monkeypatch):
    """A folder where `standin.py` keeps what the programs were told."""
    folder = tmp_path / "standin"
    folder.mkdir()
    for name in ("kubectl", "gcloud", "squeue", "scontrol", "sbatch"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent / "standin.py"} {name} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("STANDIN", str(folder))
    return Standin(folder)


class Standin:
    """What was said to the stand-in, and what it says."""

    def __init__(self, folder):
        self.folder = folder

    def verbs(self):
        """What was asked for since the last look."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line)[0] for line in lines]

    def change(self, change):
        """Changes what exists."""
        (path,) = self.folder.glob("job-*")
        about = json.loads(path.read_text())
        change(about)
        path.write_text(json.dumps(about))

    def break_down(self):
        """From now on nothing works."""
        (self.folder / "broken").touch()
