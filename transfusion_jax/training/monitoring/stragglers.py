"""Which process keeps the others waiting. Steps end everywhere together, so that their times do not tell.

What tells is how long the devices of each had nothing to do before it sent them the next step: for want of a batch,
or because the host was busy elsewhere. The gathering is a collective: every process comes to it at the same steps.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils

SLOW = 1.1  # a process is named where steps would take this much less time without its delay
WORTH_SAYING = 0.05  # seconds per step; where steps are short, less than that is writing the log itself
NAME_BYTES = 64


@dataclass(frozen=True)
class Slowest:
    """The process that delays its devices most."""

    process: int
    seconds: float  # that its devices lie idle per step
    for_data: float  # of these, waiting for a batch
    ratio: float  # seconds per step, to what they would be were it as fast as the median process


def gather_numbers(values: list[float]) -> np.ndarray:
    """One row of numbers per process, `[processes, numbers]` float32; a collective where there are several."""
    own = np.asarray(values, np.float32)
    return np.asarray(multihost_utils.process_allgather(own)) if jax.process_count() > 1 else own[None]


def gather_names() -> list[str]:
    """The host of each process; a collective where there are several."""
    own = socket.gethostname().encode()[:NAME_BYTES].ljust(NAME_BYTES, b"\0")
    if jax.process_count() == 1:
        return [own.rstrip(b"\0").decode(errors="replace")]
    rows = np.asarray(multihost_utils.process_allgather(np.frombuffer(own, np.uint8)))
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]


def slowest(late: np.ndarray, data_wait: np.ndarray, seconds_per_step: float) -> Slowest:
    """The process whose devices lie idle longest for its sake.

    Args:
        late: seconds per step that each process's devices lay idle, `[processes]`.
        data_wait: of these, waiting for a batch.
        seconds_per_step: of all.
    """
    process = int(np.argmax(late))
    excess = float(late[process] - np.sort(late)[(len(late) - 1) // 2])
    without = max(seconds_per_step - excess, seconds_per_step / 100)
    ratio = seconds_per_step / without if seconds_per_step else 1.0
    return Slowest(process, float(late[process]), float(data_wait[process]), ratio)


def describe_straggler(slow: Slowest, name: str, seconds_per_step: float) -> str:
    """What the user is told of a slow process."""
    return (
        f"process {slow.process} ({name}) keeps the others waiting: {slow.seconds:.3f} s of each step's "
        f"{seconds_per_step:.3f} s, {slow.for_data:.3f} s of it for data"
    )
