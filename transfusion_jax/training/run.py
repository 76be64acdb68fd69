"""A run in its workdir: taken, begun or resumed, trained, and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax

from transfusion_jax.data.stream import AnyRows
from transfusion_jax.errors import CheckpointError, TrainingHalted, some
from transfusion_jax.parallel import placement, processes
from transfusion_jax.parallel.devices import peak_flops
from transfusion_jax.parallel.mesh import unsplit_heads
from transfusion_jax.parallel.processes import on_first
from transfusion_jax.storage.paths import within
from transfusion_jax.training.checkpoint.errors import DamagedCheckpoint
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.loop import Hook, Outcome, Position, last_step, train
from transfusion_jax.training.monitoring.heartbeat import heartbeat
from transfusion_jax.training.monitoring.metrics import duration
from transfusion_jax.training.monitoring.monitor import monitored
from transfusion_jax.training.monitoring.telemetry import NOTHING_MORE, Watching
from transfusion_jax.training.monitoring.throughput import Timer
from transfusion_jax.training.monitoring.watchdog import Beat, watchdog
from transfusion_jax.training.preemption import Interruption
from transfusion_jax.training.run_dir import DAMAGED, Workdir
from transfusion_jax.training.start_run import Start, begin_or_resume
from transfusion_jax.training.step.state import RunContext, State, create_state


@contextmanager
def begun(
    start: Start, context: RunContext, data: Any, workdir: Workdir, interruption: Interruption, beat: Beat
) -> Iterator[None]:
    """Locks the workdir, and brings it to where training goes on; while this lasts, no other run trains there."""
    with ExitStack() as held:
        with interruption.may_leave():
            if processes.first():
                held.enter_context(workdir.locked(context.log))
                held.enter_context(heartbeat(workdir.heartbeat, beat, context.config.loop.hang_after))
            begin_or_resume(start, context, data, workdir)
            if not processes.first():
                held.enter_context(workdir.owned())
        yield


def train_run(
    context: RunContext,
    workdir: Workdir,
    rows: AnyRows,
    interruption: Interruption,
    hooks: tuple[Hook, ...] = (),
    watching: Watching = NOTHING_MORE,
    beat: Beat | None = None,
) -> Outcome:
    """Trains from the newest checkpoint in the workdir, or from the start; see `training.loop.train`.

    Args:
        context: the run.
        workdir: where everything is written; it has been begun with this config and data.
        rows: the stream of its data.
        interruption: the signals that end training early.
        hooks: what is done besides.
        watching: what else to look at while it trains.
        beat: is told what is being done.

    Raises:
        TrainingHalted: the guard stopped it; nothing was saved since the last checkpoint.
        CheckpointError: there was a checkpoint, or must be, and none can be used.
        StorageError: a file cannot be written.
    """
    config, mesh, log, beat = context.config, context.mesh, context.log, beat or Beat()
    with watchdog(config.loop.hang_after, beat), ExitStack() as opened:
        with interruption.may_leave():
            peak, origin = peak_flops(jax.local_devices()[0])
            log(f"mesh {dict(mesh.shape)}; peak {peak / 1e12:.2f} TFLOP/s per device ({origin})")
            for line in unsplit_heads(mesh.shape["tensor"], config):
                log(line)
            of_run = Checkpoints(workdir.checkpoints, config.loop.keep, config.loop.keep_every, workdir.about())
            checkpoints = opened.enter_context(of_run)
            position = resume(context, workdir, checkpoints)
            first, end = int(position.state.step), last_step(config)
            log_placement(context, position.state)
            if first >= end and position.concluded:
                more = (
                    "without loop.stop_at" if end < config.steps else "--config.steps=MORE --accept-changes steps"
                )
                log(f"{workdir.path} is done: {first} of {config.steps} steps. To train on: {more}")
                return Outcome(first)
            timer = Timer(first, peak, mesh.size, context.task.flops, position.totals)
            monitoring = monitored(context, workdir, timer, first, watching, beat, hooks)
            monitor = opened.enter_context(monitoring)
        outcome = train(context, position, rows, checkpoints, monitor, interruption, hooks)
    if outcome.interrupted:
        log(f"stopped at step {outcome.step} and saved; run the same command to go on")
    else:
        log(f"trained {outcome.step} steps in {duration(timer.total)}")
        if outcome.step < config.steps:
            log(f"the run has {config.steps} steps: the same command without loop.stop_at continues")
    return outcome


def resume(context: RunContext, workdir: Workdir, checkpoints: Checkpoints) -> Position:
    """Where training goes on from. A damaged checkpoint is set aside, and the one before it is taken.

    Raises:
        CheckpointError: there was a checkpoint, or must be, and none can be used.
        TrainingHalted: the checkpoint has more bad steps in a row than the config allows.
    """
    checkpoints.clean()
    while steps := on_first(lambda: checkpoints.steps):
        newest = steps[-1]
        try:
            state, manifest = checkpoints.restore(newest, context.abstract_state)
        except DamagedCheckpoint as error:
            where = checkpoints.set_aside(newest, workdir.aside)
            moved_to = within(where, workdir.path)
            workdir.remember(DAMAGED, step=newest, reason=error.reason, moved_to=moved_to)
            context.log(f"{error}; moved to {where}")
            continue
        context.log(f"resumed from step {newest}")
        bad, most = int(state.guard.in_a_row), context.config.guard.max_in_a_row
        if bad >= most:  # the limit was lowered since
            raise TrainingHalted(
                f"step {newest} was saved after {bad} bad steps in a row, and guard.max_in_a_row is {most}: "
                "raise it, or go back with --rewind-to"
            )
        totals = manifest.get("totals") or None if newest else {}  # former versions kept none
        return Position(state, int(manifest["next_row"]), bool(manifest["concluded"]), totals)
    if not workdir.began_from_nothing():
        raise CheckpointError(f"no checkpoint is left in {workdir.path} to go on from: begin a new --workdir")
    if workdir.lost_checkpoints():
        raise CheckpointError(
            f"no checkpoint is left in {workdir.path}, all are damaged and in {workdir.aside}: "
            "--rewind-to 0 begins again from the first step"
        )
    return Position(create_state(context), 0, True, {})


def log_placement(context: RunContext, state: State) -> None:
    """Says where the state lives.

    Raises:
        ConfigError: it does not live as its rules say.
    """
    placement.check_placement(state, context.abstract_state)
    parts = {"parameters": state.params, "optimizer": state.optimizer, "average": state.ema}
    context.log("\n".join(["the state lives", *placement.describe_placement(parts)]))
    whole = placement.unsplit(state)
    if whole:
        context.log(f"  whole on every device: {some(list(whole))}, {sum(whole.values()) / 2**20:,.1f} MiB")
