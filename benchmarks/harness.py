"""What all benchmarks share: interleaved timing, ratios against a reference, a table, JSON and a picture."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfusion_jax.parallel.devices import measured_peak

LIBRARIES = ("jax", "flax", "libtpu", "torch", "transfusion-pytorch", "numpy")
PEAK_SIZES = (512, 1024, 1536, 2048)


@dataclass(frozen=True)
class Peak:
    """What speeds are compared with."""

    flops: float  # FLOP/s
    source: str  # what reached it, or who says that it can be reached


@dataclass(frozen=True)
class Timing:
    """Seconds per iteration of one contestant."""

    median: float
    quartiles: tuple[float, float]
    speed: float  # beside the reference's, median over rounds: above 1 is faster
    rate: float | None  # work per second of the median, where the work is known
    peak_share: float | None


@dataclass(frozen=True)
class Report:
    """The result of one benchmark."""

    title: str
    reference: str
    rounds: int
    timings: dict[str, Timing]
    unit: str  # of the rates
    peak: Peak | None
    disturbance: float  # cores that other processes kept busy meanwhile: ratios hold where it is near 0
    notes: Sequence[str]
    machine: dict[str, object]


@dataclass(frozen=True)
class Lines:
    """A diagram of how something grows; both axes are logarithmic."""

    title: str
    x: str  # what it grows with, and the unit
    y: str
    points: Mapping[str, Sequence[tuple[float, float]]]  # of each line, by its name
    linear: bool = False  # y is linear, from zero


def compare(
    title: str,
    contestants: Mapping[str, Callable[[], object]],
    reference: str,
    rounds: int,
    work: Mapping[str, float] | None = None,
    unit: str = "FLOP/s",
    peak: Peak | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Times each contestant once per round, in turn, so that a drift of the machine hits all alike.

    Args:
        title: names the benchmark.
        contestants: each runs one iteration and returns when it is done; the first of each turn is not timed.
        reference: the contestant that the others are compared with.
        rounds: how often each is timed.
        work: what one iteration does, such as floating-point operations; those that are left out do as much as the
            reference.
        unit: of that work per second.
        peak: what the speed of that work is compared with.
        notes: printed below the table.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    begin, others = time.perf_counter(), others_seconds()
    for _ in range(rounds):
        for name, run in contestants.items():
            run()  # not timed: what has lain idle has cold caches, and its memory may have been taken from it
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    disturbance = (others_seconds() - others) / (time.perf_counter() - begin)
    done = work or {}
    per_work = [s / done.get(reference, 1) for s in seconds[reference]]
    timings = {
        n: summarise(s, [p * done.get(n, done.get(reference, 1)) for p in per_work], done.get(n), peak)
        for n, s in seconds.items()
    }
    return Report(title, reference, rounds, timings, unit, peak, disturbance, notes, machine())


def apart(
    make: Callable[..., tuple[Callable[[], object], Any]], *arguments: Any, tree: Path | None = None
) -> tuple[Callable[[], None], Any]:
    """A contestant in a process of its own, so that the threads of another library do not wait on its cores.

    Args:
        make: an importable function; returns what runs one iteration, and a value that is handed on.
        arguments: what it is called with there.
        tree: whose package it runs; by default this one's.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process, path = context.Process(target=_serve, args=(there, make, arguments), daemon=True), sys.path
    sys.path = [str(tree), *path] if tree else path  # a process begins with the path of the one that starts it
    process.start()
    sys.path = path
    there.close()  # so that a process that fails ends the wait for it

    def run() -> None:
        here.send(None)
        here.recv()

    return run, here.recv()


def _serve(pipe: Any, make: Callable[..., tuple[Callable[[], object], Any]], arguments: tuple) -> None:
    run, value = make(*arguments)
    pipe.send(value)
    with suppress(EOFError):  # the benchmark has ended
        while True:
            pipe.recv()
            run()
            pipe.send(None)


def matmul_peak(products: Mapping[str, Callable[[int], float]]) -> Peak:
    """The fastest float32 product of two square matrices on this machine.

    Of a few sizes, by XLA and by other libraries, each a function of a size to FLOP/s.
    """
    libraries = {"XLA": measured_peak, **products}
    return max(
        (
            Peak(run(size), f"float32 product of size {size} by {name}")
            for size in PEAK_SIZES
            for name, run in libraries.items()
        ),
        key=lambda peak: peak.flops,
    )


def parser(description: str | None, timed: bool = True, plot: bool = False) -> argparse.ArgumentParser:
    """The flags that every benchmark takes, or every one that times something, or draws."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    if timed:
        result.add_argument("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    result.add_argument(
        "--json",
        metavar="PATH",
        nargs="?",
        const="-",
        help="write a report; - or no path prints it in place of the table",
    )
    if plot:
        result.add_argument("--plot", metavar="PATH", type=picture, help="draw the result, too, into a PNG file")
    return result


def picture(path: str) -> str:
    """A path to draw to; what could not be drawn is refused before anything is measured."""
    if not path.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{path} does not end in .png")
    if not Path(path).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(path).parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("matplotlib is not installed: pip install matplotlib")
    return path


def publish(report: Report, json_path: str | None, plot_path: str | None = None) -> None:
    """Prints the table; writes JSON, and draws the times, where it was asked for."""
    deliver(dataclasses.asdict(report), table(report), json_path, plot_path, [report])


def deliver(
    result: Mapping[str, object],
    text: str,
    json_path: str | None,
    plot_path: str | None = None,
    panels: Sequence[Report | Lines] = (),
) -> None:
    """Prints a result as text, or as JSON where it was asked for; or writes JSON besides, and draws.

    Args:
        result: all of it.
        text: the same for reading.
        json_path: of the flag `--json`.
        plot_path: of the flag `--plot`.
        panels: what is drawn there, all of one kind.
    """
    encoded = json.dumps(result, indent=2)
    print(encoded if json_path == "-" else text)
    if json_path not in (None, "-"):
        Path(json_path).write_text(encoded + "\n")
    if plot_path is not None:
        import plots  # not above: matplotlib may be left out

        plots.draw(panels).savefig(plot_path)


def table(report: Report) -> str:
    """The report for reading."""
    rows = [("", "seconds", "quartiles", "speed", report.unit, "of peak")]
    for name, t in report.timings.items():
        quartiles = " … ".join(map(_seconds, t.quartiles))
        work = (_rate(t.rate) if t.rate else "", f"{t.peak_share:.0%}" if t.peak_share else "")
        rows.append((name, _seconds(t.median), quartiles, f"{t.speed:.2f}x", *work))
    known = list(zip(*(column for column in zip(*rows, strict=True) if any(column[1:])), strict=True))
    title = f"{report.title} ({report.rounds} rounds; speed against {report.reference})"
    return "\n".join([title, *align(known), *footer(report)])


def footer(report: Report) -> list[str]:
    """The lines below a table: what it is to be read with."""
    peak = [f"peak: {report.peak.flops:.3g} FLOP/s, {report.peak.source}"] if report.peak else []
    disturbance = f"cores that other processes kept busy: {report.disturbance:.2f}"
    return [*peak, disturbance, *report.notes, ", ".join(f"{k} {v}" for k, v in report.machine.items())]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns: the first flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
    return lines


def summarise(times: list[float], reference: list[float], work: float | None, peak: Peak | None) -> Timing:
    """One contestant's times, round by round beside those that the reference takes for the same work."""
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, method="inclusive") if len(times) > 1 else times * 3
    speed = statistics.median(r / t for r, t in zip(reference, times, strict=True))
    rate = work / median if work else None
    return Timing(median, (low, high), speed, rate, rate / peak.flops if rate and peak else None)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value >= 0.1 else f"{value:.5f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value < 1e9 else f"{value:.3g}"


def others_seconds() -> float:
    """Processor time that all but this process and its children have used; 0 where Linux does not say."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    own = [Path(f"/proc/{child.pid}/stat").read_text() for child in multiprocessing.active_children()]
    ticks = sum(sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in own)
    ended = os.times()  # children that have ended are no longer active
    mine = time.process_time() + ended.children_user + ended.children_system
    return (user + nice + system - ticks) / os.sysconf("SC_CLK_TCK") - mine


def machine() -> dict[str, object]:
    """The processor, its cores and the versions of the libraries that are installed."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(": ")[1] for line in cpuinfo.splitlines() if line.startswith("model name")]
    versions = {d.name: d.version for d in importlib.metadata.distributions() if d.name in LIBRARIES}
    return {"cpu": (models or [platform.machine()])[0], "cores": os.cpu_count() or 1} | versions
