"""Real processes that live and die together: plain Python ones, so that each case takes little time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PATIENCE = 60  # seconds for anything to happen
LAUNCHER = """
import json, sys
from transfusion_jax.launching.supervisor import ProcessProgram, run_together, take_signals
texts = enumerate(json.loads(sys.argv[1]))
programs = [ProcessProgram([sys.executable, "-uc", text], {"NUMBER": str(n)}) for n, text in texts]
with take_signals() as events:
    ends, asked = run_together(programs, float(sys.argv[2]), events, lambda line: print(line, file=sys.stderr))
print(json.dumps({"codes": [[end.process, end.code] for end in ends], "asked": asked}))
"""
SLEEP = "import time, os; print('ready', os.getpid()); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-uc', {SLEEP!r}]); {SLEEP}"
COUNTS_SIGNALS = """
import signal, sys, time
seen = []
signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
print("ready")
while not seen:
    time.sleep(0.01)
time.sleep(0.3)
print("signals", len(seen))
sys.exit(75)
"""


@pytest.fixture
def launched():
    """Starts launchers, and kills their groups should a test fail."""
    started = []

    def start(*programs, grace=PATIENCE):
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, json.dumps(programs), str(grace)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finished(process):
    """The result, what else was printed, and what came to stderr."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    *lines, result = out.splitlines()
    return json.loads(result), lines, err.splitlines()


def test_lines_of_the_library_between_processes_are_left_out(launched):
    text = "print('[Gloo] Rank 0 is connected to 1 peer ranks.'); print('step 1'); print('a [Gloo] b')"
    result, lines, errors = finished(launched(text, text))
    assert sorted(result["codes"]) == [[0, 0], [1, 0]]
    assert lines == ["step 1", "a [Gloo] b"]
    assert errors == ["[1] step 1", "[1] a [Gloo] b"]


def test_process_0_prints_as_it_is_and_the_others_with_their_number(launched):
    text = "import os; print('out of', os.environ['NUMBER']); os.write(2, b'error\\n')"  # a line at a time
    result, lines, errors = finished(launched(text, text))
    assert result == {"codes": result["codes"], "asked": False}
    assert sorted(result["codes"]) == [[0, 0], [1, 0]]
    assert lines == ["out of 0"]
    assert sorted(errors) == ["[1] error", "[1] out of 1", "error"]


def test_when_one_fails_the_others_are_ended_after_the_grace(launched):
    result, _, errors = finished(launched(SLEEP, "raise SystemExit(5)", grace=0.2))
    assert result["codes"] == [[1, 5], [0, 143]]
    assert errors == ["process 1 ended with 5", "SIGTERM to process 0", "process 0 ended with 143 (SIGTERM)"]


def test_one_that_does_not_end_is_killed(launched, tmp_path):
    ready = f"pathlib.Path({str(tmp_path / 'ready')!r})"
    failing = f"import pathlib, time\nwhile not {ready}.exists(): time.sleep(0.01)\nraise SystemExit(5)"
    stubborn = f"import pathlib, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {ready}.touch(); {SLEEP}"
    result, _, errors = finished(launched(failing, stubborn, grace=0.2))
    assert result["codes"] == [[0, 5], [1, 137]]
    assert "SIGTERM to process 1" in errors[: errors.index("SIGKILL to process 1")]


def test_one_that_ends_well_leaves_the_others_alone(launched):
    result, lines, _ = finished(launched("import time; time.sleep(0.5); print('done')", "", grace=0.01))
    assert result["codes"] == [[1, 0], [0, 0]]
    assert lines == ["done"]


def test_a_signal_reaches_each_once_and_they_have_time_to_save(launched):
    process = launched(COUNTS_SIGNALS, COUNTS_SIGNALS, grace=PATIENCE)
    errors = [process.stderr.readline(), process.stdout.readline()]  # one line of each process
    assert errors == ["[1] ready\n", "ready\n"]
    process.send_signal(signal.SIGTERM)
    result, lines, errors = finished(process)
    assert result["asked"]
    assert sorted(result["codes"]) == [[0, 75], [1, 75]]
    assert lines == ["signals 1"]
    assert "[1] signals 1" in errors


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_launcher(launched, number):
    process = launched(PARENT, STUBBORN, grace=0.1)
    running = [int(process.stdout.readline().split()[1]) for _ in range(2)]  # process 0 and its child
    running.append(int(process.stderr.readline().split()[2]))
    group = os.getpgid(running[0])
    assert {os.getpgid(pid) for pid in running} == {group}
    process.send_signal(number)
    process.wait(PATIENCE)
    wait_until_empty(group)


def test_what_a_process_leaves_behind_is_ended(launched):
    orphan = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); print(os.getpgrp())"
    result, lines, _ = finished(launched(orphan, orphan))
    assert sorted(result["codes"]) == [[0, 0], [1, 0]]
    wait_until_empty(int(lines[0]))


def wait_until_empty(group):
    end = time.monotonic() + PATIENCE
    while left := members(group):
        assert time.monotonic() < end, left
        time.sleep(0.01)


def members(group):
    """Processes of a group that have not ended."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                state, _, its_group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(its_group) == group and state != "Z":
                found.append(int(path.name))
    return found
