"""The training loop. It trains any `Task`, and reads top to bottom."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from transfusion_jax.config import Config
from transfusion_jax.data.stream import Rows, batches
from transfusion_jax.flops import peak_flops
from transfusion_jax.parallel.sharding import batch_sharding, local_rows
from transfusion_jax.training.checkpoint import BEST, Checkpoints
from transfusion_jax.training.metrics import Writer, duration, open_writer, progress_line
from transfusion_jax.training.state import State, abstract_state, create_state
from transfusion_jax.training.step import make_step
from transfusion_jax.training.task import Task
from transfusion_jax.training.workdir import Workdir


@dataclass(frozen=True)
class Hook:
    """Something done every so many steps, on the weights that would be used: the average where there is one.

    The function takes (step, weights, writer) and returns metrics to log; it is called at the last step too.
    """

    every: int
    function: Callable[[int, Any, Writer], dict[str, float]]


@dataclass
class Interruption:
    """Which signal asked the run to stop, if one did."""

    signal: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How training ended: the last step done, and the signal that ended it early."""

    step: int
    interrupted_by: int | None = None


def train(
    task: Task,
    config: Config,
    rows: Rows,
    mesh: Mesh,
    workdir: Workdir,
    hooks: tuple[Hook, ...] = (),
    say: Callable = print,
) -> Outcome:
    """Trains to the config's last step, from the newest checkpoint in the workdir or from the start.

    Args:
        task: what is trained.
        config: the run.
        rows: the stream of its data.
        mesh: the devices.
        workdir: where everything is written; it has been begun with this config and data.
        hooks: evaluations and drawings.
        say: prints a line for the user.
    """
    sharding = batch_sharding(mesh)
    peak, origin = peak_flops(jax.local_devices()[0])
    say(f"mesh {dict(mesh.shape)}; peak {peak / 1e12:.2f} TFLOP/s per device ({origin})")
    with Checkpoints(workdir.checkpoints, config.loop.keep) as checkpoints:
        state, next_row = start(task, config, mesh, checkpoints, say)
        first = int(state.step)
        if first >= config.steps:
            say(f"{workdir.path} is done: {first} of {config.steps} steps. A larger --config.steps is a new run.")
            return Outcome(first)
        step_function = make_step(task, config, mesh)
        local = local_rows(sharding, config.batch_rows)
        stream = batches(rows, next_row, config.batch_rows, local, config.data.workers)
        with stream as batch_of, open_writer(workdir, first) as writer, stop_on_signal(say) as interruption:
            timer = Timer(first, peak * len(mesh.devices.flat), len(mesh.devices.flat))
            for step in range(first + 1, config.steps + 1):
                batch = to_global(next(batch_of), sharding)
                state, reported = step_function(state, batch)
                next_row += config.batch_rows
                if step == first + 1:
                    jax.block_until_ready(reported)
                    say(f"first step after {timer.restart():.1f} s, compilation included")

                last = step == config.steps or interruption.signal is not None
                timer.add(reported)
                if step % config.loop.log_every == 0 or last:
                    values = timer.read(step, task)
                    writer.record(step, values)
                    say(progress_line(step, config.steps, values, timer.seconds_per_step))
                metrics: dict[str, float] = {}
                with jax.set_mesh(mesh), timer.paused():
                    for hook in hooks:
                        if hook.every and (step % hook.every == 0 or step == config.steps):
                            metrics |= hook.function(step, state.params if state.ema is None else state.ema, writer)
                if metrics:
                    writer.record(step, metrics)
                    say(f"step {step}  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
                if step % config.loop.save_every == 0 or last:
                    held_out = {"loss": metrics[HELD_OUT_LOSS]} if HELD_OUT_LOSS in metrics else None
                    checkpoints.save(state, next_row, held_out)
                if last:
                    break
        checkpoints.wait()
        if interruption.signal is not None:
            say(f"stopped at step {step} and saved; run the same command to go on")
            return Outcome(step, interruption.signal)
        say(f"trained {step} steps in {duration(timer.total)}")
        return Outcome(step)


HELD_OUT_LOSS = f"held_out/{BEST}"  # what the best checkpoint is chosen by


def start(task: Task, config: Config, mesh: Mesh, checkpoints: Checkpoints, say: Callable) -> tuple[State, int]:
    """The state to go on from, and the next row to read."""
    if not checkpoints.steps:
        return create_state(task, config, mesh), 0
    newest = checkpoints.steps[-1]
    state, next_row = checkpoints.restore(newest, abstract_state(task, config, mesh))
    say(f"resumed from step {newest}")
    return state, next_row


def to_global(batch: Any, sharding: NamedSharding) -> Any:
    """This process's rows as its part of the global batch."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


@contextmanager
def stop_on_signal(say: Callable) -> Iterator[Interruption]:
    """Ctrl-C and SIGTERM end training after the running step; a second one ends the process at once."""
    interruption = Interruption()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def handle(number: int, frame: object) -> None:
        del frame
        interruption.signal = number
        for other in signals:
            signal.signal(other, signal.SIG_DFL)
        say(f"{signal.Signals(number).name}: saving after this step; a second one stops at once")

    for number in signals:
        signal.signal(number, handle)
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Timer:
    """Speed since the last reading; evaluation and saving are not counted."""

    def __init__(self, step: int, peak: float, devices: int):
        self.total = 0.0
        self.seconds_per_step = 0.0
        self._peak, self._devices = peak, devices
        self._reported: list[dict[str, jax.Array]] = []
        self._step, self._begin = step, time.perf_counter()

    def restart(self) -> float:
        """Leaves the time up to now out, and returns it."""
        elapsed = time.perf_counter() - self._begin
        self._begin = time.perf_counter()
        self._step += 1
        self._reported.clear()
        return elapsed

    def add(self, reported: dict[str, jax.Array]) -> None:
        """Takes what a step reported; reads nothing off the device yet."""
        self._reported.append(reported)

    def read(self, step: int, task: Task) -> dict[str, float]:
        """The last step's numbers, and the speed since the last reading."""
        history = jax.device_get(self._reported)
        values = {name: float(value) for name, value in history[-1].items()}
        seconds = time.perf_counter() - self._begin
        self.total += seconds
        steps = step - self._step
        if steps:
            counts = [{name: float(value) for name, value in entry.items()} for entry in history[-steps:]]
            work = sum(task.flops(entry) for entry in counts) / seconds
            elements = sum(entry["elements"] for entry in counts) / seconds
            values |= {
                "elements_per_second": elements,
                "elements_per_second_per_device": elements / self._devices,
                "tflops_per_second": work / 1e12,
                "tflops_per_second_per_device": work / 1e12 / self._devices,
                "mfu": work / self._peak,
            }
            self.seconds_per_step = seconds / steps
        else:
            values["elements_per_second"] = 0.0
        self._reported.clear()
        self._step, self._begin = step, time.perf_counter()
        return values

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time within is not counted."""
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin
