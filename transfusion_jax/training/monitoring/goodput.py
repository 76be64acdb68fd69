"""Where a run's time goes, over all attempts: an attempt is one life of its processes, from start to end or kill.

Each attempt keeps its own account in a small file of the workdir's `attempts/`, written whole again and again; what
came after the last writing before a kill counts as the restart's. The sum over all files is the account of the run:
every second since the first attempt began has one kind.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transfusion_jax.storage.atomic import parse_json, write_json
from transfusion_jax.storage.paths import Place, read_all
from transfusion_jax.training.monitoring.metrics import duration

STEP, RESTART = "step", "restart"
KINDS = {
    "start": "from the process's start to the first batch: imports, data, loading a checkpoint",
    "compile": "the first step, whose program is compiled or found in the cache",
    STEP: "steps",
    "data_wait": "the devices had nothing to do, and the next batch was not there",
    "checkpoint": "the loop waited for a save",
    "evaluation": "evaluations and drawings",
    "profile": "writing a trace",
}
DONE, SIGNAL = "done", "signal"  # how an attempt ends; otherwise by an error, whose name and message are kept


class Clock:
    """Seconds of this process by kind; each moment belongs to one."""

    def __init__(self, began: float):
        self.began = began  # seconds since the epoch
        self.kind = "start"
        self._seconds = dict.fromkeys(KINDS, 0.0) | {"start": time.time() - began}
        self._since = time.perf_counter()

    def turn(self, kind: str, counts_as: str | None = None) -> float:
        """From now on time is of another kind; what has passed since the last turn counts as `counts_as`.

        Returns the seconds since the last turn.
        """
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        self._seconds[counts_as or self.kind] += elapsed
        self.kind = kind
        return elapsed

    @contextmanager
    def within(self, kind: str) -> Iterator[None]:
        """Time within is of another kind."""
        before = self.kind
        self.turn(kind)
        try:
            yield
        finally:
            self.turn(before)

    def recount(self, kind: str, counts_as: str, seconds: float) -> None:
        """Seconds that were counted as one kind were of another, as another process has said since."""
        self._seconds[kind] -= seconds
        self._seconds[counts_as] += seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Up to now."""
        self.turn(self.kind)
        return dict(self._seconds)


@dataclass(frozen=True)
class Attempt:
    """What one attempt says of itself; times are seconds since the epoch."""

    number: int
    began: float
    updated: float
    first_step: int  # that it resumed from
    step: int
    seconds: dict[str, float]  # by kind
    doing: str
    ended: str | None = None  # how; None while it runs, and for ever where it was killed
    about: dict[str, Any] = field(default_factory=dict)  # host, processes, speed, memory, slow hosts

    @property
    def last_heard(self) -> float:
        """When it ended, or wrote last."""
        return self.began + sum(self.seconds.values())


FORM: dict[str, Any] = {  # of an attempt's file
    **{"number": int, "first_step": int, "step": int, "began": float, "updated": float},
    **{"doing": str, "ended?": (None, str), "seconds": {...: float}},
    "about?": {"hosts?": [str], "memory?": (None, dict), "seconds_per_step?": (None, float)},
}


@dataclass(frozen=True)
class Account:
    """Seconds of a run by kind, restarts among them."""

    seconds: dict[str, float]
    lost_steps: int  # computed, and computed again after a restart
    attempts: int

    @property
    def total(self) -> float:
        """Seconds since the run began."""
        return sum(self.seconds.values())

    @property
    def fractions(self) -> dict[str, float]:
        """Of the run's time; steps that were computed again later are the restart's."""
        return {kind: seconds / max(self.total, 1e-9) for kind, seconds in self.seconds.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """`goodput`, the share of the steps that count, and `goodput/KIND`, that of everything else."""
        shares = self.fractions
        return {"goodput": shares.pop(STEP)} | {f"goodput/{kind}": share for kind, share in shares.items()}


def account(attempts: Sequence[Attempt]) -> Account:
    """The sum over a run's attempts, in their order.

    Between two attempts time is lost, and so are the steps that a later attempt made again, each at the mean time
    of its attempt's steps. The time after an attempt that finished is not counted.
    """
    seconds = dict.fromkeys([*KINDS, RESTART], 0.0)
    lost_steps = 0
    for place, attempt in enumerate(attempts):
        for kind, value in attempt.seconds.items():
            seconds[kind] += value
        later = attempts[place + 1 :]
        if not later:
            break
        if attempt.ended != DONE:
            seconds[RESTART] += max(0.0, later[0].began - attempt.last_heard)
        kept = max(attempt.first_step, min([attempt.step, *(other.first_step for other in later)]))
        made, lost = attempt.step - attempt.first_step, attempt.step - kept
        if lost:
            wasted = attempt.seconds[STEP] * lost / made
            seconds[STEP] -= wasted
            seconds[RESTART] += wasted
            lost_steps += lost
    return Account(seconds, lost_steps, len(attempts))


def describe_account(account: Account) -> str:
    """A line for the user."""
    shares = sorted(account.fractions.items(), key=lambda share: -share[1])
    parts = [f"{kind.replace('_', ' ')} {share:.0%}" for kind, share in shares if kind != STEP and share >= 0.005]
    attempts = f" in {account.attempts} attempts" if account.attempts > 1 else ""
    lost = f", with {account.lost_steps} steps made again" if account.lost_steps else ""
    head = f"goodput {account.fractions[STEP]:.0%} of {duration(account.total)}{attempts}{lost}"
    return ": ".join([head, "  ".join(parts)]) if parts else head


def end_of(attempt: Attempt) -> str:
    """How an attempt ended, as the predicate of a sentence."""
    if attempt.ended is None:
        return f"was killed, or lost its machine, while {attempt.doing}; last heard of at step {attempt.step}"
    how = {DONE: "finished", SIGNAL: "was asked to end"}.get(attempt.ended, f"ended by {attempt.ended}")
    return f"{how} at step {attempt.step}"


def read_attempts(folder: Place) -> list[Attempt]:
    """All attempts of a run, in order."""
    if not folder.is_dir():
        return []
    entries: Iterator[Place] = folder.iterdir()
    files = sorted((path for path in entries if path.name.endswith(".json")), key=lambda path: path.name)
    return [_parse(data, path) for path, data in zip(files, read_all(files), strict=True)]


def _parse(data: bytes, path: Place) -> Attempt:
    remedy = "move it away: the account of the run's time then lacks that attempt"
    values = parse_json(data, path, remedy, FORM)
    seconds = dict.fromkeys(KINDS, 0.0) | values["seconds"]  # a former version had fewer kinds
    known = {f.name for f in dataclasses.fields(Attempt)}
    return Attempt(**{name: value for name, value in values.items() if name in known} | {"seconds": seconds})


def write_attempt(folder: Place, attempt: Attempt) -> None:
    """Puts an attempt's file in place.

    Raises:
        StorageError: it cannot be written.
    """
    write_json(folder / f"{attempt.number:05d}.json", dataclasses.asdict(attempt))
