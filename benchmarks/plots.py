"""Pictures of what benchmarks find: bars of the times of reports, and lines of how something grows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from harness import Lines, Report

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # the colour-blind tell them apart, too
STYLES = (("o", "-", 8), ("s", "--", 6), ("^", "-.", 5), ("D", ":", 4))  # so that a line is seen below another
GUIDE = "in proportion"  # where a panel's first line would go if it grew as x does
WIDTH = 9.0  # inches
DOTS_PER_INCH = 120
LONG = 16  # an axis whose ends are so far apart has fewer ticks


def draw(panels: Sequence[Report | Lines]) -> Figure:
    """One picture of reports, or of diagrams."""
    reports = [p for p in panels if isinstance(p, Report)]
    diagrams = [p for p in panels if isinstance(p, Lines)]
    assert bool(reports) != bool(diagrams), "panels of one kind"
    return bars(reports) if reports else lines(diagrams)


def bars(reports: Sequence[Report]) -> Figure:
    """The median time of each contestant with its quartiles, and its speed beside the reference's."""
    counts = [len(report.timings) for report in reports]
    figure = _figure(WIDTH, 1.0 * len(reports) + 0.36 * sum(counts))
    grid = figure.subplots(len(reports), squeeze=False, height_ratios=counts)
    for axes, report in zip(grid[:, 0], reports, strict=True):
        _bars(axes, report)
    return figure


def lines(diagrams: Sequence[Lines]) -> Figure:
    """The diagrams, two beside one another, beside a legend."""
    columns = min(2, len(diagrams))
    rows = -(-len(diagrams) // columns)
    figure = _figure(WIDTH if columns > 1 else 0.8 * WIDTH, 3.6 * rows)
    looks = _looks(name for diagram in diagrams for name in diagram.points)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, diagram in itertools.zip_longest(grid.flat, diagrams):
        if diagram is None:
            axes.remove()
        else:
            _lines(axes, diagram, looks)
    shown = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
    if len(shown) > 1:
        order = sorted(shown, key=lambda name: name == GUIDE)
        handles = [shown[name] for name in order]
        figure.legend(handles, order, loc="outside right upper", frameon=False, handlelength=3.5)
    return figure


def _bars(axes: Axes, report: Report) -> None:
    timings = report.timings.values()
    most = max(t.quartiles[1] for t in timings)
    unit, scale = ("seconds", 1.0) if most >= 1 else ("milliseconds", 1e3)
    for place, (name, t) in enumerate(report.timings.items()):
        low, high = ([abs(q - t.median) * scale] for q in t.quartiles)
        color = "0.65" if name == report.reference else COLORS[0]
        axes.barh(place, t.median * scale, 0.7, xerr=(low, high), color=color, error_kw={"capsize": 3, "lw": 1})
        beyond = (t.quartiles[1] * scale, place)
        axes.annotate(f"{t.speed:.2f}x", beyond, (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(timings)), report.timings)
    axes.invert_yaxis()  # as in the table
    axes.set_xlim(0, 1.12 * most * scale)  # with room for the label
    axes.set_xlabel(f"{unit}, median and quartiles of {report.rounds} rounds; speed against {report.reference}")
    _finish(axes, report.title, "x")


def _lines(axes: Axes, diagram: Lines, looks: Mapping[str, Mapping[str, Any]]) -> None:
    points = {name: sorted(line) for name, line in diagram.points.items()}
    for name, line in points.items():
        axes.plot(*zip(*line, strict=True), label=name, **looks[name])
    widths = sorted({x for line in points.values() for x, _ in line})
    axes.set_xscale("log")
    axes.set_xticks(widths, [f"{x:,.10g}" for x in widths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(diagram.x)
    axes.set_ylabel(diagram.y)
    if diagram.linear:
        axes.set_ylim(0, 1.25 * max(y for line in points.values() for _, y in line))
    else:
        (x, y), *_ = next(iter(points.values()))
        axes.plot(widths, [y * width / x for width in widths], ":", label=GUIDE, color="0.7", lw=3, zorder=1)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        ticks = (1, 3) if high > LONG * low else (1, 1.5, 2, 3, 5, 7)
        axes.yaxis.set_major_locator(LogLocator(10, ticks, numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    _finish(axes, diagram.title, "both")


def _finish(axes: Axes, title: str, grid: Literal["x", "both"]) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(axis=grid, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    return Figure((width, height), DOTS_PER_INCH, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def _looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A look for each name, the same in all panels of a picture."""
    looks = [
        {"color": color, "marker": marker, "linestyle": style, "markersize": size}
        for color, (marker, style, size) in zip(COLORS, itertools.cycle(STYLES), strict=False)
    ]
    return dict(zip(dict.fromkeys(names), itertools.cycle(looks), strict=False))
