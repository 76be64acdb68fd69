"""No process outlives the one that started it, however that ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from transfusion_jax.parallel.children import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""
LIFELINE = """
import subprocess, sys, time
from transfusion_jax.parallel.children import lifeline

CHILD = "import os, sys, time; from transfusion_jax.parallel.children import end_with; end_with(int(sys.argv[1])); "
CHILD += "print(os.getpid(), flush=True); time.sleep(600)"
with lifeline() as descriptor:
    subprocess.run([sys.executable, "-c", CHILD, str(descriptor)], pass_fds=[descriptor])
"""


@pytest.mark.parametrize("program", [POOL, LIFELINE], ids=["a worker", "a program"])
def test_a_child_ends_when_its_parent_is_killed(program, tmp_path):
    (tmp_path / "program.py").write_text(program)
    parent = subprocess.Popen([sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert runs(child)
    parent.kill()
    parent.wait()
    wait_for_end([child])


@pytest.mark.slow
def test_workers_of_prepare_end_when_it_is_killed(tmp_path):
    for name in "ab":
        lines = (json.dumps({"text": f"{name} {number} " * 200}) + "\n" for number in range(100_000))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    inputs = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    command = ["prepare", *inputs, "--output", str(tmp_path / "out"), "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-m", "transfusion_jax.cli", *command])
    while len(list(tmp_path.glob("out/*.tmp"))) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    started = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(started) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for_end(started)


def runs(process):
    """Whether it does, and has not merely not been waited for."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def wait_for_end(processes):
    end = time.monotonic() + 600
    while any(map(runs, processes)):
        assert time.monotonic() < end, "still there"
        time.sleep(0.01)
