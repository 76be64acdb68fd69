"""A run while it trains, seen from outside: where its time goes, which host is slow, how full memory is, traces."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import jax

from transfusion_jax.errors import StorageError
from transfusion_jax.parallel import devices
from transfusion_jax.parallel.processes import first
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.jsonl_segments import EVERY
from transfusion_jax.training.monitoring import goodput, stragglers
from transfusion_jax.training.monitoring.goodput import Attempt, Clock, end_of
from transfusion_jax.training.monitoring.profiler import StepRange, traced
from transfusion_jax.training.monitoring.throughput import Timer
from transfusion_jax.training.monitoring.watchdog import Beat
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.step.step import Report

BEAT = 5.0  # seconds between two writings of the attempt's file, at least; in a bucket parts.EVERY
DOING = {
    "compile": "compiling the first step",
    "step": "training",
    "evaluation": "evaluating",
    "checkpoint": "saving",
    "profile": "writing a trace",
}


@dataclass(frozen=True)
class Watching:
    """What is asked for beside the accounts that every run has."""

    began: float | None = None  # the process's start, in seconds since the epoch; by default now
    profile: StepRange | None = None  # steps to trace
    wandb: tuple[str, str | None] | None = None  # project and name in Weights & Biases


NOTHING_MORE = Watching()


class Watch:
    """The watch over one attempt; a context that ends with it. All processes make the same calls.

    The loop says what it does: `waiting` for a batch, a `step`, what `stepped`, and what it does `aside`.

    Args:
        workdir: whose `attempts/` keeps the account; the first process alone writes there.
        first_step: that the attempt resumes from.
        steps: the one to end with.
        timer: paused while something else than steps is done.
        asked: what else to do.
        heart: is told what is being done.
        log: prints a line for the user.
    """

    def __init__(
        self,
        workdir: Workdir,
        first_step: int,
        steps: int,
        timer: Timer,
        asked: Watching,
        heart: Beat,
        log: Callable[[str], None],
    ):
        self._workdir, self._steps, self._timer, self._asked, self._say = workdir, steps, timer, asked, log
        self._heart = heart
        heart.step = first_step
        self._clock = Clock(asked.began or time.time())
        self._writes = first()
        self._beat = EVERY if isinstance(workdir.path, BucketPath) else BEAT
        self._earlier = goodput.read_attempts(workdir.attempts) if self._writes else []
        self._names = stragglers.gather_names()
        devices = jax.devices()
        about = {
            "hosts": list(dict.fromkeys(self._names)),
            "processes": len(self._names),
            "devices": f"{len(devices)} × {devices[0].device_kind}",
            "pid": os.getpid(),
        }
        number = self._earlier[-1].number + 1 if self._earlier else 1
        self._attempt = Attempt(number, self._clock.began, 0, first_step, first_step, {}, "starting", about=about)
        self._last: Report | None = None
        self._free = self._stepped = time.perf_counter()  # when devices were waited for, and when a step was sent
        self._late = self._data_wait = self._longest = 0.0  # since the last reading
        self._read_at = first_step
        self._told_memory = False
        self._trace = ExitStack()

    def __enter__(self) -> Watch:
        if self._earlier:
            self._say(f"attempt {self._attempt.number}: the one before {end_of(self._earlier[-1])}")
        profile = self._asked.profile
        if profile and profile.begin <= self._attempt.first_step:
            self._say(f"no trace of {profile}: the run resumes after step {self._attempt.first_step}")
            self._asked = replace(self._asked, profile=None)
        self._write(doing=DOING["compile"])
        return self

    def leave(self, reason: str = goodput.SIGNAL) -> None:
        """A signal, or what the reason says, ends the process now."""
        self._write(doing="ended", ended=reason)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        done = self._attempt.step >= self._steps
        ended = (
            (goodput.DONE if done else goodput.SIGNAL)
            if error is None
            else f"{type(error).__name__}: {error}"[:500]
        )
        with suppress(*((StorageError,) if error else ())):  # what ended the run is to be said, not what came of it
            self._trace.close()
            self._write(doing="ended", ended=ended)
        if self._writes:
            self._say(goodput.describe_account(goodput.account([*self._earlier, self._attempt])))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The next batch is being waited for. It counts where the devices have nothing else to do meanwhile."""
        self._clock.turn(self._clock.kind)
        yield
        if self._last is None:
            self._clock.turn("compile")
        elif self._idle():
            self._data_wait += self._clock.turn(goodput.STEP, counts_as="data_wait")

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A step is being sent to the devices, and traced if that was asked for."""
        if self._idle():
            self._late += time.perf_counter() - self._free
        profile = self._asked.profile
        tracing = profile if profile and number in profile and self._writes else None
        if tracing and number == tracing.begin:
            jax.block_until_ready(self._last)
            self.free()
            self._trace.enter_context(traced(self._workdir.profile))
        with jax.profiler.StepTraceAnnotation("train", step_num=number) if tracing else nullcontext():
            yield
        self._attempt = replace(self._attempt, step=number)
        self._heart.stepped(number)

    def stepped(self, report: Report) -> None:
        """A step was sent off; the first one has been waited for, too."""
        now = time.perf_counter()
        if self._last is None:
            self._clock.turn(goodput.STEP)
            self._write(doing=DOING["step"])
            self.free()
        else:
            self._longest = max(self._longest, now - self._stepped)
        self._last, self._stepped = report, now
        profile = self._asked.profile
        if profile and self._writes and self._attempt.step == profile.end - 1:
            with self.aside("profile"):
                jax.block_until_ready(report)
                self._trace.close()
            self._say(f"{profile} traced into {self._workdir.profile}; to look: pip install xprof, and")
            self._say(f"  xprof --logdir {self._workdir.profile} --port 8791")

    def free(self) -> None:
        """The devices have just been waited for: until the next step is sent, this host keeps them waiting."""
        self._free = time.perf_counter()

    @contextmanager
    def aside(self, kind: str) -> Iterator[None]:
        """Something else than steps is done, of a kind that `goodput.KINDS` names."""
        before = self._attempt.doing
        if kind == "evaluation":  # the others are short, as a rule
            self._write(doing=DOING[kind])
        self._heart.turn(DOING[kind])
        begin = time.perf_counter()
        with self._timer.paused(), self._clock.within(kind):
            yield
        self._write(doing=before)
        self._stepped += time.perf_counter() - begin
        self.free()

    def read(self, step: int) -> dict[str, float]:
        """The numbers to log since the last reading; a collective where there are several processes."""
        steps, seconds_per_step = step - self._read_at, self._timer.seconds_per_step
        self._read_at = step
        own = devices.memory(jax.local_devices())
        late, data_wait = ((s / steps if steps else 0.0) for s in (self._late, self._data_wait))
        names = sorted(own)
        table = stragglers.gather_numbers([late, data_wait, self._longest, *(own[name] for name in names)])
        most = {name: float(value) for name, value in zip(names, table[:, 3:].max(0), strict=True)}
        self._late = self._data_wait = self._longest = 0.0
        if not self._told_memory:
            self._say(devices.describe_memory(most))
            self._told_memory = True
        values = {"seconds_per_step": seconds_per_step, "seconds_per_step_longest": float(table[:, 2].max())}
        longest_wait = float(table[:, 1].max())
        values |= {"data_wait_per_step": longest_wait}
        self._clock.recount(
            goodput.STEP, "data_wait", steps * (longest_wait - data_wait)
        )  # all wait for one of them
        values |= {f"memory/{name}": value for name, value in most.items()}
        about = self._attempt.about | {"seconds_per_step": seconds_per_step, "memory": most, "slow": None}
        if len(table) > 1:
            slow = stragglers.slowest(table[:, 0], table[:, 1], seconds_per_step)
            values |= {
                "host/slowest": slow.process,
                "host/slowest_idle_per_step": slow.seconds,
                "host/slowest_ratio": slow.ratio,
            }
            if slow.ratio >= stragglers.SLOW and slow.seconds >= stragglers.WORTH_SAYING:
                about["slow"] = stragglers.describe_straggler(slow, self._names[slow.process], seconds_per_step)
                self._say(about["slow"])
        self._attempt = replace(self._attempt, about=about)
        if not self._writes:
            return values
        if time.time() - self._attempt.updated >= self._beat:
            self._write(doing=DOING["step"])
        here = replace(self._attempt, seconds=self._clock.seconds)
        account = goodput.account([*self._earlier, here])
        return values | account.metrics | {"lost_steps": account.lost_steps, "restarts": account.attempts - 1}

    def _idle(self) -> bool:
        if self._last is None:
            return False
        verdict: Any = self._last.verdict  # JAX's types do not tell of `is_ready`
        return bool(verdict.is_ready())

    def _write(self, doing: str, ended: str | None = None) -> None:
        self._heart.turn(doing)
        self._attempt = replace(
            self._attempt, updated=time.time(), seconds=self._clock.seconds, doing=doing, ended=ended
        )
        if self._writes:
            goodput.write_attempt(self._workdir.attempts, self._attempt)
