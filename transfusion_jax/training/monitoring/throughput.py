"""How fast a run is: steps, elements and operations per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

TOTALS = {"total_elements": "elements", "total_images": "images", "total_flops": ""}  # by name: the count, if one


class Timer:
    """Speed since the last reading; evaluation and saving are not counted.

    Args:
        step: the newest that is done.
        peak: FLOP/s of a device.
        devices: how many there are.
        flops: the operations of a step that reported these counts.
        totals: those of `count` up to this step, None where they are not known.
    """

    def __init__(
        self,
        step: int,
        peak: float,
        devices: int,
        flops: Callable[[dict[str, float]], float],
        totals: dict[str, float] | None = None,
    ):
        self.total = 0.0
        self._totals = dict.fromkeys(TOTALS, 0.0) | totals if totals is not None else None
        self._uncounted: list[dict[str, jax.Array]] = []
        self.seconds_per_step = 0.0
        self.peak, self._devices, self._flops = peak, devices, flops
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
        self._uncounted.append(reported)

    def count(self) -> dict[str, float]:
        """Elements, images and operations of all steps since the run's first; empty where they are not known."""
        if self._totals is None:
            return {}
        for entry in jax.device_get(self._uncounted):
            counts = {name: float(value) for name, value in entry.items()}
            for name, of in TOTALS.items():
                self._totals[name] += counts.get(of, 0.0) if of else self._flops(counts)
        self._uncounted.clear()
        return dict(self._totals)

    def read(self, step: int) -> dict[str, float]:
        """The last step's numbers, and the speed since the last reading, if a step was made."""
        history = jax.device_get(self._reported)
        values = {name: float(value) for name, value in history[-1].items()}
        seconds = time.perf_counter() - self._begin
        self.total += seconds
        steps = step - self._step
        if steps:
            counts = [{name: float(value) for name, value in entry.items()} for entry in history[-steps:]]
            work = sum(self._flops(entry) for entry in counts) / seconds
            elements = sum(entry["elements"] for entry in counts) / seconds
            values |= {
                "elements_per_second": elements,
                "elements_per_second_per_device": elements / self._devices,
                "tflops_per_second": work / 1e12,
                "tflops_per_second_per_device": work / 1e12 / self._devices,
                "mfu": work / (self.peak * self._devices),
            }
            self.seconds_per_step = seconds / steps
        self._reported.clear()
        self._step, self._begin = step, time.perf_counter()
        return values

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time within is not counted."""
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin
