"""Where the numbers of a run go: `metrics.jsonl`, TensorBoard, and a line on the screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from transfusion_jax.parallel.processes import first
from transfusion_jax.storage.jsonl import Lines, keep_until, read_lines
from transfusion_jax.storage.paths import Place
from transfusion_jax.training.monitoring.tensorboard import Events
from transfusion_jax.training.monitoring.wandb_logger import Tracker
from transfusion_jax.training.run_dir import Workdir

SHOWN = {
    "loss_text": "text",
    "loss_image": "image",
    "loss_l1": "L1",
    "psnr": "PSNR",
}  # on the screen, where reported


class MetricsWriter:
    """Writes records and images of one run; opened by `open_writer`.

    Its functions raise StorageError or OSError where they cannot write.
    """

    def __init__(self, workdir: Workdir, events: Events, newest: int | None, tracker: Tracker | None = None):
        self._workdir, self._events, self._newest, self._tracker = workdir, events, newest, tracker
        self._metrics, self._bad_steps = Lines(workdir.metrics), Lines(workdir.bad_steps)

    def record(self, step: int, values: dict[str, float]) -> None:
        """One object in `metrics.jsonl` and the same scalars in TensorBoard; what is not finite is left out.

        A record of the newest step takes the place of that step's earlier one; elsewhere, what it adds is written.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._metrics.append({"step": step, **finite}, in_place_of_last=step == self._newest)
        self._newest = step
        self._events.scalars(step, finite)
        if self._tracker:
            self._tracker.record(step, finite)

    def bad_step(self, diagnosis: dict[str, Any]) -> None:
        """One object in `bad_steps.jsonl`."""
        self._bad_steps.append(diagnosis)

    def bad_steps(self) -> list[dict[str, Any]]:
        """All of them, in order."""
        self._bad_steps.flush()
        return read_lines(self._workdir.bad_steps)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An image `[H, W, 3]` uint8 in TensorBoard."""
        self._events.image(step, name, image)
        if self._tracker:
            self._tracker.image(step, name, image)

    def flush(self) -> None:
        """Returns once everything can be read: before a checkpoint, whose steps will not be made again."""
        for file in (self._metrics, self._bad_steps, self._events):
            file.flush()


class SilentWriter(MetricsWriter):
    """That of all processes but the first, which writes for all."""

    def __init__(self, workdir: Workdir):
        self._workdir = workdir

    def record(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def bad_step(self, diagnosis: dict[str, Any]) -> None:
        """Nothing."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


@contextmanager
def open_writer(
    workdir: Workdir, first_step: int, tracker: Tracker | None = None, log: Callable[[str], None] = print
) -> Iterator[MetricsWriter]:
    """A writer that goes on after `first_step`: records of later steps, which will be made again, are dropped."""
    if not first():
        yield SilentWriter(workdir)
        return
    for path in (workdir.metrics, workdir.bad_steps):
        if kept := keep_until(path, first_step, workdir.aside):
            log(f"lines of {path} are damaged and were left out; the file as it was is {kept}")
    records = read_lines(workdir.metrics)
    if tracker and records:
        tracker.goes_on_after(records[-1])
    events = Events(workdir.tensorboard, first_step + 1)
    writer = MetricsWriter(workdir, events, records[-1]["step"] if records else None, tracker)
    try:
        yield writer
    finally:
        writer.flush()
        events.close()


def record_of(path: Place, step: int) -> dict[str, float]:
    """The newest record of a metrics file where it is of this step, without its number; else nothing."""
    newest: dict[str, float] = [{}, *read_lines(path)][-1]
    return newest if newest.pop("step", None) == step else {}


def progress_line(step: int, steps: int, values: dict[str, float], seconds_per_step: float) -> str:
    """What the user watches: losses, speed, and the time that is left."""
    left = (steps - step) * seconds_per_step
    parts = [
        f"step {step:>{len(str(steps))}}/{steps}",
        *(
            f"{word} {values[name]:.3f}"
            for name, word in SHOWN.items()
            if not math.isnan(values.get(name, math.nan))
        ),
        f"grad {values['grad_norm']:.2f}",
    ]
    if "mfu" in values:
        parts += [f"{values['elements_per_second']:,.0f} elements/s", f"MFU {values['mfu']:.0%}"]
    return "  ".join([*parts, f"{duration(left)} left"])


def duration(seconds: float) -> str:
    """Seconds as `1d 2h`, `3h 4m`, `5m 6s` or `7s`."""
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    total = round(seconds)
    counts: list[str] = []
    for unit, size in units:
        count, total = divmod(total, size)
        if count or counts:
            counts.append(f"{count}{unit}")
    return " ".join(counts[:2]) or "0s"
