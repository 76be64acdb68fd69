"""The training loop. It trains any `Task`, and reads top to bottom."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from transfusion_jax.config import Run
from transfusion_jax.data.stream import AnyRows, batches
from transfusion_jax.errors import CheckpointError, TrainingHalted, some
from transfusion_jax.flops import peak_flops
from transfusion_jax.parallel import placement
from transfusion_jax.parallel.processes import count, on_first
from transfusion_jax.parallel.sharding import batch_sharding, local_rows
from transfusion_jax.parallel.tree import leaf_names
from transfusion_jax.storage.paths import within
from transfusion_jax.tasks.base import Task
from transfusion_jax.training.checkpoint.errors import DamagedCheckpoint
from transfusion_jax.training.checkpoint.manager import BEST, Checkpoints
from transfusion_jax.training.monitoring import bad_steps
from transfusion_jax.training.monitoring.metrics import Writer, duration, open_writer, progress_line, record_of
from transfusion_jax.training.monitoring.telemetry import NOTHING_MORE, Watch, Watching
from transfusion_jax.training.monitoring.throughput import Timer
from transfusion_jax.training.monitoring.wandb_logger import open_tracker
from transfusion_jax.training.monitoring.watchdog import Beat, watchdog
from transfusion_jax.training.preemption import Interruption
from transfusion_jax.training.run_dir import DAMAGED, Workdir
from transfusion_jax.training.step.bad_step_guard import FINE
from transfusion_jax.training.step.state import State, abstract_state, create_state
from transfusion_jax.training.step.step import Report, make_step

SETTLED = 50  # steps, of which the first ones are slower
HELD_OUT_LOSS = f"held_out/{BEST}"  # what the best checkpoint is chosen by


@dataclass(frozen=True)
class Hook:
    """Something done every so many steps, on the weights that would be used: the average where there is one.

    The function takes (step, weights, writer) and returns metrics to log; it is called at the last step too.
    """

    every: int
    function: Callable[[int, Any, Writer], dict[str, float]]


@dataclass(frozen=True)
class Pace:
    """What steps take, once the first, slower ones are over."""

    peak: float  # FLOP/s of a device
    record: dict[str, float]  # the newest
    seconds: float  # of a step
    bytes_used: Callable[[], float]  # of a device, by the compiled step


@dataclass(frozen=True)
class Outcome:
    """How training ended: the last step done, and whether a signal ended it there."""

    step: int
    interrupted: bool = False


def train(
    task: Task,
    config: Run,
    rows: AnyRows,
    mesh: Mesh,
    workdir: Workdir,
    interruption: Interruption,
    hooks: tuple[Hook, ...] = (),
    log: Callable[[str], None] = print,
    watching: Watching = NOTHING_MORE,
    beat: Beat | None = None,
    settled: Callable[[Pace], None] = lambda pace: None,
) -> Outcome:
    """Trains to the last step or `loop.stop_at`, from the newest checkpoint in the workdir or from the start.

    Args:
        task: what is trained.
        config: the run.
        rows: the stream of its data.
        mesh: the devices.
        workdir: where everything is written; it has been begun with this config and data.
        interruption: the signals that end training early.
        hooks: evaluations and drawings.
        log: prints a line for the user.
        watching: what else to look at while it trains.
        beat: is told what is being done.
        settled: is told once what steps take.

    Raises:
        TrainingHalted: the guard stopped it; nothing was saved since the last checkpoint.
        StorageError: a file cannot be written.
    """
    peak, origin = peak_flops(jax.local_devices()[0])
    log(f"mesh {dict(mesh.shape)}; peak {peak / 1e12:.2f} TFLOP/s per device ({origin})")
    loop, beat = config.loop, beat or Beat()
    with (
        watchdog(loop.hang_after, beat),
        ExitStack() as until_first_step,
        Checkpoints(workdir.checkpoints, loop.keep, loop.keep_every, workdir.about()) as checkpoints,
    ):
        until_first_step.enter_context(interruption.may_leave())
        state, next_row, concluded = start(task, config, mesh, checkpoints, workdir, log)
        first = int(state.step)
        say_where(state, abstract_state(task, config, mesh), log)
        end = last_step(config)
        if first >= end and concluded:
            more = "without loop.stop_at" if end < config.steps else "--config.steps=MORE --accept-changes steps"
            log(f"{workdir.path} is done: {first} of {config.steps} steps. To train on: {more}")
            return Outcome(first)
        sharding = batch_sharding(mesh)
        local = local_rows(sharding, config.batch_rows)
        stream = batches(rows, next_row, config.batch_rows, local, config.workers, log)
        totals = checkpoints.manifest(first).get("totals") or None if first else {}
        timer = Timer(first, peak * mesh.size, mesh.size, totals)
        watch = Watch(workdir, first, end, timer, watching, beat, log)
        tracking = open_tracker(watching.wandb, workdir, config, log)
        beat.last_words = watch.leave
        with watch, stream as batch_of, tracking as tracker, open_writer(workdir, first, tracker, log) as writer:
            run = _Run(
                config, mesh, checkpoints, writer, interruption, hooks, timer, watch, log, beat, state, next_row
            )
            if not concluded:
                record = on_first(lambda: record_of(workdir.metrics, first))
                metrics = run.conclude(first, record, run.due(first), saved=True)
                writer.flush()
                checkpoints.conclude(first, run.held_out(metrics))
            step_function = make_step(task, config, mesh)
            outcome, told = Outcome(first), False
            while outcome.step < end and not outcome.interrupted:
                step = outcome.step + 1
                with watch.waiting():
                    batch = to_global(next(batch_of), sharding)
                with watch.step(step):
                    run.state, report = step_function(run.state, batch, interruption.requested)
                if step == first + 1:
                    jax.block_until_ready(report)
                    log(f"first step after {timer.restart():.1f} s, compilation included")
                    until_first_step.close()
                run.next_row = rows.after(run.next_row, config.batch_rows)
                outcome = run.after_step(step, report, task)
                if run.record and step >= first + SETTLED and not told:
                    told = True
                    used = functools.partial(step_function.bytes_used, run.state, batch)
                    settled(Pace(peak, run.record, run.timer.seconds_per_step, used))
            with watch.aside("checkpoint"):
                checkpoints.wait()
    if outcome.interrupted:
        log(f"stopped at step {outcome.step} and saved; run the same command to go on")
    else:
        log(f"trained {outcome.step} steps in {duration(timer.total)}")
        if outcome.step < config.steps:
            log(f"the run has {config.steps} steps: the same command without loop.stop_at continues")
    return outcome


def last_step(config: Run) -> int:
    """The step that training ends with for now."""
    return min(config.steps, config.loop.stop_at or config.steps)


def start(
    task: Task, config: Run, mesh: Mesh, checkpoints: Checkpoints, workdir: Workdir, log: Callable[[str], None]
) -> tuple[State, int, bool]:
    """The state to go on from, the next row to read, and whether what was due at its step has been done.

    A damaged checkpoint is set aside, and the one before it is taken.

    Raises:
        CheckpointError: there was a checkpoint, or must be, and none can be used.
        TrainingHalted: the checkpoint has more bad steps in a row than the config allows.
    """
    checkpoints.clean()
    abstract = abstract_state(task, config, mesh)
    while steps := on_first(lambda: checkpoints.steps):
        newest = steps[-1]
        try:
            state, manifest = checkpoints.restore(newest, abstract)
        except DamagedCheckpoint as error:
            where = checkpoints.set_aside(newest, workdir.aside)
            workdir.remember(
                DAMAGED,
                step=newest,
                reason=error.reason,
                moved_to=within(where, workdir.path),
            )
            log(f"{error}; moved to {where}")
            continue
        log(f"resumed from step {newest}")
        bad, most = int(state.guard.in_a_row), config.guard.max_in_a_row
        if bad >= most:  # the limit was lowered since
            raise TrainingHalted(
                f"step {newest} was saved after {bad} bad steps in a row, and guard.max_in_a_row is {most}: "
                "raise it, or go back with --rewind-to"
            )
        return state, int(manifest["next_row"]), bool(manifest["concluded"])
    if not workdir.began_from_nothing():
        raise CheckpointError(f"no checkpoint is left in {workdir.path} to go on from: begin a new --workdir")
    if workdir.lost_checkpoints():
        raise CheckpointError(
            f"no checkpoint is left in {workdir.path}, all are damaged and in {workdir.aside}: "
            "--rewind-to 0 begins again from the first step"
        )
    return create_state(task, config, mesh), 0, True


def say_where(state: State, abstract: State, log: Callable[[str], None]) -> None:
    """Says where the state lives.

    Raises:
        ConfigError: it does not live as its rules say.
    """
    placement.check(state, abstract)
    parts = {"parameters": state.params, "optimizer": state.optimizer, "average": state.ema}
    log("\n".join(["the state lives", *placement.describe(parts)]))
    whole = placement.unsplit(state)
    if whole:
        log(f"  whole on every device: {some(list(whole))}, {sum(whole.values()) / 2**20:,.1f} MiB")


def to_global(batch: Any, sharding: NamedSharding) -> Any:
    """This process's rows as its part of the global batch."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


@dataclass
class _Run:
    """A run while it trains: what stays, and below it what each step changes."""

    config: Run
    mesh: Mesh
    checkpoints: Checkpoints
    writer: Writer
    interruption: Interruption
    hooks: tuple[Hook, ...]
    timer: Timer
    watch: Watch
    log: Callable[[str], None]
    beat: Callable[[], None]  # for the watchdog
    state: State
    next_row: int
    asked_to_end: bool = False  # by a signal to any process
    unseen: deque[tuple[int, Report]] = field(default_factory=deque)
    record: dict[str, float] = field(default_factory=dict)  # the newest

    def after_step(self, step: int, report: Report, task: Task) -> Outcome:
        """Looks at the step, logs, evaluates and saves, each where it is due."""
        loop = self.config.loop
        self.beat()
        self.checkpoints.poll()
        self.timer.add(report.values)
        self.watch.stepped(report)
        self.unseen.append((step, report))
        stopping = self.asked_to_end if count() > 1 else self.interruption.requested
        last = stopping or step == last_step(self.config)
        logging = last or step % loop.log_every == 0
        saving = last or step % loop.save_every == 0
        due = self.due(step)
        self.look(newest_too=bool(logging or saving or due))
        record: dict[str, float] = {}
        if logging:
            record = self.timer.read(step, task) | self.timer.count(task) | self.watch.read(step)
            self.record = record
            self.log(progress_line(step, self.config.steps, record, self.timer.seconds_per_step))
            self.writer.record(step, record)  # before the checkpoint: a kill between the two must not lose it
        if saving:
            with self.watch.aside("checkpoint"):
                self.writer.flush()
                totals = self.timer.count(task)
                self.checkpoints.save(self.state, self.next_row, concluded=not due, totals=totals)
        if due and not stopping:
            metrics = self.conclude(step, record, due, saving, self.timer.count(task))
            if saving:
                self.writer.flush()
                self.checkpoints.conclude(step, self.held_out(metrics))
        return Outcome(step, interrupted=stopping and bool(step < self.config.steps or due))

    def held_out(self, metrics: dict[str, float]) -> dict[str, float] | None:
        """What the best checkpoint is chosen by, where it was measured."""
        return {BEST: metrics[HELD_OUT_LOSS]} if HELD_OUT_LOSS in metrics else None

    def due(self, step: int) -> list[Hook]:
        """The hooks that this step calls."""
        last = step == self.config.steps
        return [hook for hook in self.hooks if hook.every and (last or step % hook.every == 0)]

    def look(self, newest_too: bool) -> None:
        """Finds bad steps among the reports. The newest one would have to be waited for.

        Raises:
            TrainingHalted: there are too many in a row.
        """
        while len(self.unseen) > (0 if newest_too else 1):
            step, report = self.unseen.popleft()
            verdict = int(report.verdict)
            self.watch.free()
            self.asked_to_end |= bool(report.asked_to_end)
            if verdict != FINE:
                bad = bad_steps.diagnose(step, report, leaf_names(self.state.params))
                self.writer.bad_step(bad)
                self.log(bad_steps.sentence(bad))
                if bad["in_a_row"] >= self.config.guard.max_in_a_row:
                    self.checkpoints.wait()
                    raise TrainingHalted(
                        on_first(lambda: bad_steps.verdict_on_run(self.writer.bad_steps(), self.checkpoints.steps))
                    )

    def conclude(
        self,
        step: int,
        record: dict[str, float],
        due: list[Hook],
        saved: bool,
        totals: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Calls the hooks that are due, and logs what they measured beside the step's record.

        A signal meanwhile leaves without them, once the step is saved. One of many processes cannot save alone:
        where the step is not saved yet, a signal to them waits for the hooks.
        """

        def leave() -> None:
            if not saved:
                self.writer.flush()
                self.checkpoints.save(self.state, self.next_row, concluded=False, totals=totals)
            self.checkpoints.wait()
            self.watch.leave()

        may_leave = self.interruption.may_leave(leave) if saved or count() == 1 else nullcontext()
        metrics: dict[str, float] = {}
        weights = self.state.params if self.state.ema is None else self.state.ema
        with may_leave, jax.set_mesh(self.mesh), self.watch.aside("evaluation"):
            for hook in due:
                metrics |= hook.function(step, weights, self.writer)
                self.beat()
        if saved:
            self.checkpoints.wait()  # or a kill could leave scores of weights that are not there
        if metrics:
            self.log(f"step {step}  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
            self.writer.record(step, record | metrics)
        return metrics
