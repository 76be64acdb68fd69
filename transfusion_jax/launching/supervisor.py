"""Processes of this machine that live and die together.

They form one process group with a guard, a process that does nothing but read a pipe which the launcher holds. When
the launcher ends in whatever way, kill -9 too, the pipe closes and the guard kills the group, itself included.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO, TextIO

FORWARDED = (signal.SIGINT, signal.SIGTERM)
NOISE = b"[Gloo] "  # what the library between CPU processes prints of every connection that it makes
LAST_GRACE = 5  # seconds between SIGTERM and SIGKILL for processes that outstay the grace
GUARD = "import os, signal, sys; sys.stdin.buffer.read(); os.killpg(0, signal.SIGKILL)"


@dataclass(frozen=True)
class ProcessProgram:
    """What one process runs; `environment` is added to this process's own."""

    words: Sequence[str]
    environment: Mapping[str, str]
    log: Path | None = None  # takes its output in


@dataclass(frozen=True)
class Signalled:
    """A signal came."""

    number: int


@dataclass(frozen=True)
class ProcessEnded:
    """A process ended; `code` is as a shell gives it, 128 + N after signal N."""

    process: int
    code: int


Events = SimpleQueue  # of Signalled and Ended; its put may be called in a signal handler


@contextmanager
def take_signals() -> Iterator[Events]:
    """SIGINT, SIGTERM and SIGHUP (as SIGTERM) become events for as long as the context lasts; main thread only."""
    events: Events = SimpleQueue()

    def take(number: int, frame: FrameType | None) -> None:
        events.put(Signalled(number if number in FORWARDED else signal.SIGTERM))

    before = {number: signal.signal(number, take) for number in (*FORWARDED, signal.SIGHUP)}
    try:
        yield events
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_together(
    programs: Sequence[ProcessProgram], grace: float, events: Events, log: Callable[[str], None]
) -> tuple[list[ProcessEnded], bool]:
    """Runs the programs until all have ended, and everything that they started with them.

    Process 0 has this process's output; lines of the others go to stderr with their number before them, but for
    those that have a log; `NOISE` is left out. Signals are passed on to all. Once a process has failed the others
    have `grace` seconds to end; then they are ended.

    Returns:
        The ends, in the order in which they happened, and whether a signal came.
    """
    with _guarded() as group:
        readers = []
        processes = []
        for number, program in enumerate(programs):
            process = _start(program, group, together=number > 0)
            processes.append(process)
            if process.stdout is not None:
                into, mark = (sys.stderr, f"[{number}] ") if number else (sys.stdout, "")
                readers.append(threading.Thread(target=_pass_on, args=(process.stdout, into, mark), daemon=True))
            threading.Thread(target=_await, args=(number, process, events), daemon=True).start()
        for reader in readers:
            reader.start()
        result = _watch(processes, grace, events, log)
    for reader in readers:  # the group is dead, so that no one holds the pipes' other ends
        reader.join()
    return result


def _watch(
    processes: Sequence[subprocess.Popen], grace: float, events: Events, log: Callable[[str], None]
) -> tuple[list[ProcessEnded], bool]:
    ends: list[ProcessEnded] = []
    asked = failed = False
    deadline: float | None = None
    last_words = iter((signal.SIGTERM, signal.SIGKILL))

    def send(number: int) -> None:
        for process in processes:
            process.send_signal(number)  # nothing happens where it has ended

    while len(ends) < len(processes):
        try:
            event = events.get(timeout=None if deadline is None else max(deadline - time.monotonic(), 0))
        except Empty:
            number = next(last_words)
            left = sorted(set(range(len(processes))) - {end.process for end in ends})
            log(f"{number.name} to process {', '.join(map(str, left))}")
            send(number)
            deadline = time.monotonic() + LAST_GRACE if number == signal.SIGTERM else None
            continue
        if isinstance(event, Signalled):
            asked = True
            send(event.number)
            continue
        ends.append(event)
        if event.code:
            log(f"process {event.process} ended with {_describe(event.code)}")
            if not failed:
                failed, deadline = True, time.monotonic() + grace
    return ends, asked


def _describe(code: int) -> str:
    try:
        return f"{code} ({signal.Signals(code - 128).name})"
    except ValueError:
        return str(code)


@contextmanager
def _guarded() -> Iterator[int]:
    """The number of a new process group that is killed at the context's end, or at this process's."""
    guard = subprocess.Popen([sys.executable, "-I", "-S", "-c", GUARD], stdin=subprocess.PIPE, process_group=0)
    try:
        yield guard.pid
    finally:
        os.killpg(guard.pid, signal.SIGKILL)  # with whatever the programs have left behind
        guard.wait()
        assert guard.stdin is not None
        guard.stdin.close()


def _start(program: ProcessProgram, group: int, together: bool) -> subprocess.Popen:
    """Starts a program whose stdout is read here, with its stderr if `together`, unless both go to its log."""
    with ExitStack() as files:
        output: int | IO[bytes] = subprocess.PIPE
        if program.log is not None:
            output, together = files.enter_context(program.log.open("ab")), True
        return subprocess.Popen(
            program.words,
            env=os.environ | program.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if together else None,
            process_group=group,
        )


def _await(number: int, process: subprocess.Popen, events: Events) -> None:
    code = process.wait()
    events.put(ProcessEnded(number, code if code >= 0 else 128 - code))


def _pass_on(lines: IO[bytes], into: TextIO, mark: str) -> None:
    """Prints lines with a mark before each; where nobody listens they are read all the same."""
    with lines:
        for line in lines:
            if line.startswith(NOISE):
                continue
            try:
                into.write(f"{mark}{line.decode(errors='replace').rstrip()}\n")
                into.flush()
            except OSError:
                continue
