"""What all benchmarks share: interleaved timing, ratios against a reference, a table and JSON."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transfusion_jax.flops import measured_peak

LIBRARIES = ("jax", "flax", "torch", "transfusion-pytorch", "numpy")
PEAK_SIZES = (512, 1024, 1536, 2048)


@dataclass(frozen=True)
class Peak:
    """The fastest float32 matrix product found on this machine."""

    flops: float  # FLOP/s
    through: str  # the library that computed it
    size: int  # of the square matrices


@dataclass(frozen=True)
class Timing:
    """Seconds per iteration of one contestant."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    speed: float  # the reference's time over this one's, median over rounds: above 1 is faster
    flops: float | None  # FLOP/s of the median round, where the work is known
    share: float | None  # of the peak


@dataclass(frozen=True)
class Report:
    """The result of one benchmark."""

    title: str
    reference: str
    rounds: int
    timings: dict[str, Timing]
    peak: Peak | None
    notes: list[str]
    machine: dict[str, str | int]


def compare(
    title: str,
    contestants: Mapping[str, Callable[[], object]],
    reference: str,
    rounds: int,
    warmup: int = 2,
    work: Mapping[str, float] | None = None,
    peak: Peak | None = None,
    notes: list[str] | None = None,
) -> Report:
    """Times each contestant once per round, in turn, so that a drift of the machine hits all alike.

    Args:
        title: names the benchmark.
        contestants: each runs one iteration and returns when it is done.
        reference: the contestant that the others are compared with.
        rounds: how often each is timed.
        warmup: rounds before those, not timed.
        work: floating-point operations of one iteration, for those where it is known.
        peak: what the speed of the work is compared with.
        notes: printed below the table.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for each in range(warmup + rounds):
        for name, run in contestants.items():
            begin = time.perf_counter()
            run()
            if each >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    timings = {
        name: summarise(times, seconds[reference], (work or {}).get(name), peak)
        for name, times in seconds.items()
    }
    return Report(title, reference, rounds, timings, peak, notes or [], machine())


def matmul_peak(products: Mapping[str, Callable[[int], float]] | None = None) -> Peak:
    """The best float32 matrix product over a few sizes and over libraries.

    Args:
        products: by library, FLOP/s of a product of two square matrices of a size, beside XLA's.
    """
    libraries = {"XLA": measured_peak} | dict(products or {})
    results = [Peak(run(size), library, size) for size in PEAK_SIZES for library, run in libraries.items()]
    return max(results, key=lambda result: result.flops)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that every benchmark takes."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    result.add_argument(
        "--json", metavar="PATH", help="write the report as JSON; - prints it in place of the table"
    )
    return result


def publish(report: Report, json_path: str | None) -> None:
    """Prints the table, and writes JSON where it was asked for."""
    text = json.dumps(dataclasses.asdict(report), indent=2)
    if json_path == "-":
        print(text)
        return
    print(table(report))
    if json_path:
        Path(json_path).write_text(text + "\n")


def table(report: Report) -> str:
    """The report for reading."""
    rows = [("", "seconds", "quartiles", "speed", "FLOP/s", "of peak")]
    for name, t in report.timings.items():
        flops = "" if t.flops is None else f"{t.flops:.3g}"
        share = "" if t.share is None else f"{t.share:.0%}"
        rows.append((name, f"{t.median:.3f}", f"{t.low:.3f} … {t.high:.3f}", f"{t.speed:.2f}x", flops, share))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{report.title} ({report.rounds} rounds; speed against {report.reference})"]
    for name, *cells in rows:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right]).rstrip())
    if report.peak:
        peak = report.peak
        lines.append(
            f"peak: {peak.flops:.3g} FLOP/s, a float32 {peak.size}² matrix product by {peak.through}"
        )
    facts = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    return "\n".join([*lines, *report.notes, facts])


def summarise(times: list[float], reference: list[float], work: float | None, peak: Peak | None) -> Timing:
    """One contestant's times, round by round beside the reference's."""
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    speed = statistics.median(r / t for r, t in zip(reference, times, strict=True))
    flops = work / median if work is not None else None
    share = flops / peak.flops if flops is not None and peak else None
    return Timing(median, low, high, speed, flops, share)


def machine() -> dict[str, str | int]:
    """The processor, the cores this process may use, and library versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if name in installed}
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": cores,
        "python": platform.python_version(),
    } | versions
