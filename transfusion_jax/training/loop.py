"""The training loop. It trains any `Task`, calls what it was given, and reads top to bottom."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from transfusion_jax.config.base import Run
from transfusion_jax.data.stream import AnyRows, batches
from transfusion_jax.errors import TrainingHalted
from transfusion_jax.parallel.processes import on_first, process_count
from transfusion_jax.parallel.sharding import batch_sharding, local_rows
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.checkpoint.reader import BEST
from transfusion_jax.training.preemption import Interruption
from transfusion_jax.training.step.bad_step_guard import FINE
from transfusion_jax.training.step.state import RunContext, State
from transfusion_jax.training.step.step import Report, make_step

HELD_OUT_LOSS = f"held_out/{BEST}"  # what the best checkpoint is chosen by


class Monitor(Protocol):
    """What watches a run while it trains; see `monitoring.monitor`. All processes make the same calls."""

    def waiting(self) -> AbstractContextManager[None]:
        """The next batch is being waited for."""
        ...

    def step(self, number: int) -> AbstractContextManager[None]:
        """A step is being sent to the devices."""
        ...

    def stepped(self, step: int, report: Report) -> None:
        """A step was sent off; the attempt's first one is waited for here."""
        ...

    def waited(self) -> None:
        """The devices have just been waited for."""
        ...

    def aside(self, kind: str) -> AbstractContextManager[None]:
        """Something else than steps is done: "checkpoint" or "evaluation"."""
        ...

    def alive(self) -> None:
        """Something has gone on."""
        ...

    def record(self, step: int, bytes_used: Callable[[], float]) -> dict[str, float]:
        """Logs the numbers since the last record, and returns them; `bytes_used` are those of one device."""
        ...

    def recorded(self, step: int) -> dict[str, float]:
        """The record of a step that an earlier attempt logged; empty where it is not the newest."""
        ...

    def evaluated(self, step: int, record: dict[str, float], metrics: dict[str, float]) -> None:
        """Logs what hooks measured beside the step's record."""
        ...

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs an image `[H, W, 3]` uint8."""
        ...

    def bad_step(self, step: int, report: Report) -> None:
        """Logs a step that was not taken."""
        ...

    def why_halted(self, checkpoints: list[int]) -> str:
        """Why the bad steps end the run, and how to go on from the steps that have a checkpoint."""
        ...

    def totals(self) -> dict[str, float]:
        """Elements, images and operations of all steps since the run's first; empty where they are not known."""
        ...

    def flush(self) -> None:
        """Returns once all that was logged can be read: before a checkpoint, whose steps are not made again."""
        ...

    def leave(self) -> None:
        """A signal ends the process now."""
        ...


@dataclass(frozen=True)
class Pace:
    """What steps take, once the first, slower ones are over."""

    peak: float  # FLOP/s of a device
    record: dict[str, float]  # the newest
    seconds: float  # of a step
    bytes_used: float  # of a device, by the compiled step


def nothing(step: int, weights: Any, monitor: Monitor) -> dict[str, float]:
    """A hook's function that does nothing."""
    del step, weights, monitor
    return {}


@dataclass(frozen=True)
class Hook:
    """What is done beside training: every so many steps, once steps have settled, or both.

    The function takes (step, weights, monitor) and returns metrics to log; it is called at the last step too. The
    weights are those that would be used: the average where there is one.
    """

    every: int = 0  # steps; 0: never
    function: Callable[[int, Any, Monitor], dict[str, float]] = nothing
    settled: Callable[[Pace], None] | None = None  # is told once what steps take


@dataclass(frozen=True)
class Position:
    """Where training goes on from."""

    state: State
    next_row: int  # to be read
    concluded: bool  # whether the hooks that were due at its step have been called


@dataclass(frozen=True)
class Outcome:
    """How training ended: the last step done, and whether a signal ended it there."""

    step: int
    interrupted: bool = False


def train(
    context: RunContext,
    position: Position,
    rows: AnyRows,
    checkpoints: Checkpoints,
    monitor: Monitor,
    interruption: Interruption,
    hooks: tuple[Hook, ...] = (),
) -> Outcome:
    """Trains to the last step or `loop.stop_at`.

    Args:
        context: the run.
        position: where to begin.
        rows: the stream of its data.
        checkpoints: where the state is saved.
        monitor: is told what goes on.
        interruption: the signals that end training early.
        hooks: evaluations and drawings.

    Raises:
        TrainingHalted: the guard stopped it; nothing was saved since the last checkpoint.
        StorageError: a file cannot be written.
    """
    config, sharding = context.config, batch_sharding(context.mesh)
    first, local = int(position.state.step), local_rows(sharding, config.batch_rows)
    run = _Run(context, checkpoints, monitor, interruption, hooks, position.state, position.next_row)
    stream = batches(rows, run.next_row, config.batch_rows, local, config.workers, context.log)
    with ExitStack() as until_first_step, stream as batch_of:
        until_first_step.enter_context(interruption.may_leave())
        if not position.concluded:
            metrics = run.call(run.due(first), first, monitor.recorded(first), saved=True)
            monitor.flush()
            checkpoints.conclude(first, held_out(metrics))
        step_function, outcome = make_step(context), Outcome(first)
        while outcome.step < last_step(config) and not outcome.interrupted:
            step = outcome.step + 1
            with monitor.waiting():
                batch = to_global(next(batch_of), sharding)
            with monitor.step(step):
                run.state, report = step_function(run.state, batch, interruption.requested)
            monitor.stepped(step, report)
            until_first_step.close()
            run.next_row = rows.after(run.next_row, config.batch_rows)
            outcome = run.after(step, report, functools.partial(step_function.bytes_used, run.state, batch))
        with monitor.aside("checkpoint"):
            checkpoints.wait()
    return outcome


def last_step(config: Run) -> int:
    """The step that training ends with for now."""
    return min(config.steps, config.loop.stop_at or config.steps)


def held_out(metrics: dict[str, float]) -> dict[str, float] | None:
    """What the best checkpoint is chosen by, where hooks measured it."""
    return {BEST: metrics[HELD_OUT_LOSS]} if HELD_OUT_LOSS in metrics else None


def to_global(batch: Any, sharding: NamedSharding) -> Any:
    """This process's rows as its part of the global batch."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


@dataclass
class _Run:
    """A run while it trains: what it was given, and below it what each step changes."""

    context: RunContext
    checkpoints: Checkpoints
    monitor: Monitor
    interruption: Interruption
    hooks: tuple[Hook, ...]
    state: State
    next_row: int
    asked_to_end: bool = False  # by a signal to any process
    unseen: deque[tuple[int, Report]] = field(default_factory=deque)

    def after(self, step: int, report: Report, bytes_used: Callable[[], float]) -> Outcome:
        """Looks at a step, logs, saves and calls hooks, each where it is due."""
        config, monitor = self.context.config, self.monitor
        self.checkpoints.poll()
        self.unseen.append((step, report))
        stopping = self.asked_to_end if process_count() > 1 else self.interruption.requested
        last = stopping or step == last_step(config)
        logging, saving = (last or step % n == 0 for n in (config.loop.log_every, config.loop.save_every))
        due = self.due(step)
        self.look(newest_too=bool(logging or saving or due))
        # Before the checkpoint: a kill between the two must not lose the record.
        record = monitor.record(step, bytes_used) if logging else {}
        if saving:
            with monitor.aside("checkpoint"):
                self.save(concluded=not due)
        if due and not stopping:
            metrics = self.call(due, step, record, saving)
            if saving:
                monitor.flush()
                self.checkpoints.conclude(step, held_out(metrics))
        return Outcome(step, interrupted=stopping and bool(step < config.steps or due))

    def look(self, newest_too: bool) -> None:
        """Finds bad steps among the reports. The newest one would have to be waited for.

        Raises:
            TrainingHalted: there are too many in a row.
        """
        while len(self.unseen) > (0 if newest_too else 1):
            step, report = self.unseen.popleft()
            verdict = int(report.verdict)
            self.monitor.waited()
            self.asked_to_end |= bool(report.asked_to_end)
            if verdict != FINE:
                self.monitor.bad_step(step, report)
                if int(report.in_a_row) >= self.context.config.guard.max_in_a_row:
                    self.checkpoints.wait()
                    raise TrainingHalted(on_first(lambda: self.monitor.why_halted(self.checkpoints.steps)))

    def save(self, concluded: bool, totals: dict[str, float] | None = None) -> None:
        """Begins to save the state."""
        self.monitor.flush()
        totals = self.monitor.totals() if totals is None else totals
        self.checkpoints.save(self.state, self.next_row, concluded=concluded, totals=totals)

    def due(self, step: int) -> list[Hook]:
        """The hooks that a step calls."""
        last = step == self.context.config.steps
        return [hook for hook in self.hooks if hook.every and (last or step % hook.every == 0)]

    def call(self, due: list[Hook], step: int, record: dict[str, float], saved: bool) -> dict[str, float]:
        """Calls hooks, and logs what they measure beside the step's record.

        A signal meanwhile leaves without them, once the step is saved. One of many processes cannot save alone:
        where the step is not saved yet, a signal to them waits for the hooks.
        """
        totals = None if saved else self.monitor.totals()  # here: `leave` runs in another thread

        def leave() -> None:
            if not saved:
                self.save(concluded=False, totals=totals)
            self.checkpoints.wait()
            self.monitor.leave()

        may_leave = self.interruption.may_leave(leave) if saved or process_count() == 1 else nullcontext()
        metrics: dict[str, float] = {}
        weights = self.state.params if self.state.ema is None else self.state.ema
        with may_leave, jax.set_mesh(self.context.mesh), self.monitor.aside("evaluation"):
            for hook in due:
                metrics |= hook.function(step, weights, self.monitor)
                self.monitor.alive()
        if saved:
            self.checkpoints.wait()  # or a kill could leave scores of weights that are not there
        if metrics:
            self.monitor.evaluated(step, record, metrics)
        return metrics
