"""Where the numbers of a run go: `metrics.jsonl`, TensorBoard, and a line on the screen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from transfusion_jax.training.workdir import Workdir


class Writer:
    """Writes records and images of one run; opened by `open_writer`."""

    def __init__(self, lines: Any, events: SummaryWriter):
        self._lines = lines
        self._events = events

    def record(self, step: int, values: dict[str, float]) -> None:
        """One object in `metrics.jsonl` and the same scalars in TensorBoard; what is not finite is left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._lines.write(json.dumps({"step": step, **finite}) + "\n")
        self._lines.flush()
        for name, value in finite.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An image `[H, W, 3]` uint8 in TensorBoard."""
        self._events.add_image(name, image, step, dataformats="HWC")
        self._events.flush()


@contextmanager
def open_writer(workdir: Workdir, first_step: int) -> Iterator[Writer]:
    """A writer that goes on after `first_step`: records of later steps, which will be made again, are dropped."""
    keep_until(workdir.metrics, first_step)
    events = SummaryWriter(str(workdir.tensorboard), purge_step=first_step + 1 if first_step else None)
    with workdir.metrics.open("a") as lines:
        try:
            yield Writer(lines, events)
        finally:
            events.close()


def keep_until(path: Path, step: int) -> None:
    """Cuts a metrics file back to the records up to a step, and drops a half-written last line."""
    if not path.exists():
        return
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in whole if json.loads(line)["step"] <= step]
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(kept))
    beside.replace(path)


def progress_line(step: int, steps: int, values: dict[str, float], seconds_per_step: float) -> str:
    """What the user watches: losses, speed, and the time that is left."""
    left = (steps - step) * seconds_per_step
    parts = [
        f"step {step:>{len(str(steps))}}/{steps}",
        f"text {values['loss_text']:.3f}",
        f"image {values['loss_image']:.3f}",
        f"grad {values['grad_norm']:.2f}",
        f"{values['elements_per_second']:,.0f} elements/s",
    ]
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.0%}")
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
