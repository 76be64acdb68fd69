"""Trainings side by side: each a process of its own, which goes on where it was cut short."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from transfusion_jax.launching.supervisor import Events, ProcessProgram, Signalled, run_together, take_signals

FAILED = 1  # exit code of a command some of whose trainings failed
GRACE = 600.0  # seconds; a process alone has no other to wait for


@dataclass(frozen=True)
class Training:
    """One of them."""

    name: str
    words: Sequence[str]  # after `transfusion`
    log: Path  # takes its output in


def run_trainings(
    trainings: Sequence[Training],
    jobs: int,
    launcher: Sequence[str],
    begun: Callable[[Training], None],
    ended: Callable[[Training, int], None],
) -> bool:
    """Runs all of them, `jobs` at a time, each on cores of its own; one that fails does not end the others.

    A signal is passed on to those that run, which save and end; no other is begun.

    Args:
        trainings: in this order.
        jobs: trainings at a time.
        launcher: words before `--` and each run's own, such as `launch slurm --nodes 2`; or none.
        begun: told of each before it begins.
        ended: told of each end, and its exit code.

    Returns:
        Whether a signal came.
    """
    waiting, asked = deque(trainings), False
    running: dict[int, Events] = {}
    cores = _cores(jobs)
    with take_signals() as events:
        while running or (waiting and not asked):
            for place in sorted(set(range(jobs)) - running.keys()):
                if waiting and not asked:
                    training, running[place] = waiting.popleft(), SimpleQueue()
                    begun(training)
                    program = _program(training, cores[place], launcher)
                    work = (training, place, program, running[place], events)
                    threading.Thread(target=_run, args=work, daemon=True).start()
            event = events.get()
            if isinstance(event, Signalled):
                asked = True
                for own in running.values():
                    own.put(event)
                continue
            training, place, code = event
            del running[place]
            ended(training, code)
    return asked


def _cores(jobs: int) -> Sequence[Sequence[int]]:
    """Of each job, shared where there are too few; none if one has them all, or nothing can be bound (macOS)."""
    if jobs == 1 or sys.platform != "linux":
        return [()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    return [cores[job % len(cores) :: jobs] for job in range(jobs)]


def _run(training: Training, place: int, program: ProcessProgram, own: Events, events: Events) -> None:
    ends, _ = run_together([program], GRACE, own, lambda line: None)
    events.put((training, place, ends[0].code))


def _program(training: Training, cores: Sequence[int], launcher: Sequence[str]) -> ProcessProgram:
    words = [sys.executable, "-m", "transfusion_jax.cli", *([*launcher, "--"] if launcher else []), *training.words]
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []
    training.log.parent.mkdir(parents=True, exist_ok=True)
    return ProcessProgram([*pinned, *words], {}, training.log)
