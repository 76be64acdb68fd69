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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfusion_jax.flops import measured_peak

LIBRARIES = ("jax", "flax", "torch", "transfusion-pytorch", "numpy")
PEAK_SIZES = (512, 1024, 1536, 2048)


@dataclass(frozen=True)
class Peak:
    """The fastest float32 product of two square matrices found on this machine."""

    flops: float  # FLOP/s
    through: str  # the library that computed it
    size: int


@dataclass(frozen=True)
class Timing:
    """Seconds per iteration of one contestant."""

    median: float
    quartiles: tuple[float, float]
    speed: float  # the reference's time over this one's, median over rounds: above 1 is faster
    flops: float | None  # FLOP/s of the median, where the work is known
    peak_share: float | None


@dataclass(frozen=True)
class Report:
    """The result of one benchmark."""

    title: str
    reference: str
    rounds: int
    timings: dict[str, Timing]
    peak: Peak | None
    disturbance: float  # cores that other processes kept busy meanwhile: ratios hold where it is near 0
    notes: Sequence[str]
    machine: dict[str, object]


def compare(
    title: str,
    contestants: Mapping[str, Callable[[], object]],
    reference: str,
    rounds: int,
    work: Mapping[str, float] | None = None,
    peak: Peak | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Times each contestant once per round, in turn, so that a drift of the machine hits all alike.

    Args:
        title: names the benchmark.
        contestants: each runs one iteration and returns when it is done; a first round is not timed.
        reference: the contestant that the others are compared with.
        rounds: how often each is timed.
        work: floating-point operations of one iteration, where it is known.
        peak: what the speed of that work is compared with.
        notes: printed below the table.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    begin, others = time.perf_counter(), others_seconds()
    for _ in range(rounds):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    disturbance = (others_seconds() - others) / (time.perf_counter() - begin)
    timings = {n: summarise(s, seconds[reference], (work or {}).get(n), peak) for n, s in seconds.items()}
    return Report(title, reference, rounds, timings, peak, disturbance, notes, machine())


def matmul_peak(products: Mapping[str, Callable[[int], float]]) -> Peak:
    """The best over a few sizes and over XLA and other libraries, each a function of a size to FLOP/s."""
    libraries = {"XLA": measured_peak, **products}
    peaks = (Peak(run(size), name, size) for size in PEAK_SIZES for name, run in libraries.items())
    return max(peaks, key=lambda peak: peak.flops)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that every benchmark takes."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    result.add_argument("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    result.add_argument("--json", metavar="PATH", help="write a report; - prints it in place of the table")
    return result


def publish(report: Report, json_path: str | None) -> None:
    """Prints the table, and writes JSON where it was asked for."""
    text = json.dumps(dataclasses.asdict(report), indent=2)
    print(text if json_path == "-" else table(report))
    if json_path not in (None, "-"):
        Path(json_path).write_text(text + "\n")


def table(report: Report) -> str:
    """The report for reading."""
    rows = [("", "seconds", "quartiles", "speed", "FLOP/s", "of peak")]
    for name, t in report.timings.items():
        quartiles = " … ".join(f"{seconds:.3f}" for seconds in t.quartiles)
        work = (f"{t.flops:.3g}" if t.flops else "", f"{t.peak_share:.0%}" if t.peak_share else "")
        rows.append((name, f"{t.median:.3f}", quartiles, f"{t.speed:.2f}x", *work))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{report.title} ({report.rounds} rounds; speed against {report.reference})"]
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
    if peak := report.peak:
        lines.append(f"peak: {peak.flops:.3g} FLOP/s, float32 product of size {peak.size} by {peak.through}")
    lines.append(f"cores that other processes kept busy: {report.disturbance:.2f}")
    return "\n".join([*lines, *report.notes, ", ".join(f"{k} {v}" for k, v in report.machine.items())])


def summarise(times: list[float], reference: list[float], work: float | None, peak: Peak | None) -> Timing:
    """One contestant's times, round by round beside the reference's."""
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, method="inclusive") if len(times) > 1 else times * 3
    speed = statistics.median(r / t for r, t in zip(reference, times, strict=True))
    flops = work / median if work else None
    return Timing(median, (low, high), speed, flops, flops / peak.flops if flops and peak else None)


def others_seconds() -> float:
    """Processor time that other processes have used since the machine's start; 0 where Linux does not say."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - time.process_time()


def machine() -> dict[str, object]:
    """The processor, its cores and the versions of the libraries that are installed."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(": ")[1] for line in cpuinfo.splitlines() if line.startswith("model name")]
    versions = {d.name: d.version for d in importlib.metadata.distributions() if d.name in LIBRARIES}
    return {"cpu": (models or [platform.machine()])[0], "cores": os.cpu_count() or 1} | versions
