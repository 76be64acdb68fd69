"""The loop's `Monitor`: where a run's numbers, its clock, its bad steps and its signs of life go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import jax
import numpy as np

from transfusion_jax.parallel.processes import on_first
from transfusion_jax.parallel.tree import leaf_names
from transfusion_jax.training.loop import Hook, Pace, last_step
from transfusion_jax.training.monitoring import bad_steps
from transfusion_jax.training.monitoring.metrics import MetricsWriter, open_writer, progress_line, record_of
from transfusion_jax.training.monitoring.telemetry import Watch, Watching
from transfusion_jax.training.monitoring.throughput import Timer
from transfusion_jax.training.monitoring.wandb_logger import open_tracker
from transfusion_jax.training.monitoring.watchdog import Beat
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.step.state import RunContext
from transfusion_jax.training.step.step import Report

SETTLED = 50  # steps, of which the first ones are slower


@dataclass
class RunMonitor:
    """See `training.loop.Monitor`; opened by `monitored`."""

    context: RunContext
    workdir: Workdir
    writer: MetricsWriter
    timer: Timer
    watch: Watch
    beat: Beat
    first: int  # the step that the attempt resumes from
    peak: float
    hooks: tuple[Hook, ...]
    settled: bool = False  # whether hooks were told what steps take

    def waiting(self) -> AbstractContextManager[None]:
        """See `Monitor`."""
        return self.watch.waiting()

    def step(self, number: int) -> AbstractContextManager[None]:
        """See `Monitor`."""
        return self.watch.step(number)

    def stepped(self, step: int, report: Report) -> None:
        """See `Monitor`."""
        if step == self.first + 1:
            jax.block_until_ready(report)
            self.context.log(f"first step after {self.timer.restart():.1f} s, compilation included")
        self.beat()
        self.timer.add(report.values)
        self.watch.stepped(report)

    def waited(self) -> None:
        """See `Monitor`."""
        self.watch.free()

    def aside(self, kind: str) -> AbstractContextManager[None]:
        """See `Monitor`."""
        return self.watch.aside(kind)

    def alive(self) -> None:
        """See `Monitor`."""
        self.beat()

    def record(self, step: int, bytes_used: Callable[[], float]) -> dict[str, float]:
        """See `Monitor`."""
        record = self.timer.read(step) | self.timer.count() | self.watch.read(step)
        seconds = self.timer.seconds_per_step
        self.context.log(progress_line(step, self.context.config.steps, record, seconds))
        self.writer.record(step, record)
        if not self.settled and step >= self.first + SETTLED:
            self.settled, pace = True, Pace(self.peak, record, seconds, bytes_used())
            for hook in self.hooks:
                if hook.settled:
                    hook.settled(pace)
        return record

    def recorded(self, step: int) -> dict[str, float]:
        """See `Monitor`."""
        return on_first(lambda: record_of(self.workdir.metrics, step))

    def evaluated(self, step: int, record: dict[str, float], metrics: dict[str, float]) -> None:
        """See `Monitor`."""
        self.context.log(f"step {step}  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        self.writer.record(step, record | metrics)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """See `Monitor`."""
        self.writer.image(step, name, image)

    def bad_step(self, step: int, report: Report) -> None:
        """See `Monitor`."""
        bad = bad_steps.diagnose(step, report, leaf_names(self.context.abstract_state.params))
        self.writer.bad_step(bad)
        self.context.log(bad_steps.describe_bad_step(bad))

    def why_halted(self, checkpoints: list[int]) -> str:
        """See `Monitor`."""
        return bad_steps.verdict_on_run(self.writer.bad_steps(), checkpoints)

    def totals(self) -> dict[str, float]:
        """See `Monitor`."""
        return self.timer.count()

    def flush(self) -> None:
        """See `Monitor`."""
        self.writer.flush()

    def leave(self) -> None:
        """See `Monitor`."""
        self.watch.leave()


@contextmanager
def monitored(
    context: RunContext,
    workdir: Workdir,
    timer: Timer,
    first: int,
    watching: Watching,
    beat: Beat,
    hooks: tuple[Hook, ...],
) -> Iterator[RunMonitor]:
    """The monitor of an attempt that resumes from step `first`; leaving the context ends the attempt's account."""
    config, log = context.config, context.log
    watch = Watch(workdir, first, last_step(config), timer, watching, beat, log)
    tracking = open_tracker(watching.wandb, workdir, config, log)
    beat.last_words = watch.leave
    with watch, tracking as tracker, open_writer(workdir, first, tracker, log) as writer:
        yield RunMonitor(context, workdir, writer, timer, watch, beat, first, timer.peak, hooks)
