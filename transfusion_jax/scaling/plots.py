"""Scaling curves as figures: a panel for each metric, with points, fits and their bands, and arrows to parity."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from transfusion_jax.scaling.fits import SCATTER, SEEDS
from transfusion_jax.scaling.parity import Parity
from transfusion_jax.scaling.points import FLOORED, Rung, in_fit
from transfusion_jax.scaling.study import Fit, Panel, Study
from transfusion_jax.scaling.tables import FLOPS
from transfusion_jax.scaling.tables import three_digits as digits

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # the colour-blind tell them apart, too
MARKERS = ("o", "s", "^", "D", "v", "P")
PANEL = 4.4, 3.4  # inches
DOTS_PER_INCH = 150
LEGEND = 0.22  # inches for a row of it
LETTERS = 60  # of a legend that fit below a panel
GREY = "0.4"
NOISE = {SEEDS: "seeds alone", SCATTER: "scatter about it"}  # what a band counts as noise
CURVED = (0, (1, 1.5))
TALL, WIDE = 8.0, 50.0  # an axis whose ends are so far apart has ticks at powers of ten, or a few between


def draw_study(found: Study, panels: Sequence[Panel], keys: bool = True) -> Figure:
    """The panels of a study in rows, with a legend of families and, with `keys`, of what lines and marks mean."""
    columns = min(2 if len(panels) == 4 else 3, len(panels))
    rows = -(-len(panels) // columns)
    engine = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    looks = looks_of(found)
    handles = [Line2D([], [], label=family, **look) for family, look in looks.items()]
    handles += _keys(panels) if keys else []
    longest = max(len(str(handle.get_label())) for handle in handles) + 6  # letters, with the mark
    across = max(1, min(len(handles), LETTERS * columns // longest))
    height = PANEL[1] * rows + LEGEND * -(-len(handles) // across) + 0.15
    figure = Figure((PANEL[0] * columns, height), DOTS_PER_INCH, layout=engine)
    for axes, panel in itertools.zip_longest(figure.subplots(rows, columns, squeeze=False).flat, panels):
        if panel is None:
            axes.remove()
        else:
            _panel(axes, panel, looks, f"training compute, FLOPs ({FLOPS[found.flops]})")
    figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False)
    return figure


def looks_of(found: Study) -> dict[str, dict[str, Any]]:
    """Each family's colour and marker, the same in all figures of a study."""
    families = dict.fromkeys(point.family for point in found.points)
    looks = [{"color": c, "marker": m} for c, m in zip(COLORS, MARKERS, strict=True)]
    return dict(zip(families, itertools.cycle(looks), strict=False))


def describe_panel(found: Study, panel: Panel) -> str:
    """What a panel of the study shows, for those who cannot see it."""
    parts, count = [], FLOPS[found.flops]
    for fit in panel.fits:
        scores = [rung.score for rung in in_fit(fit.rungs)]
        if scores:
            slope = f", slope {fit.line.slope:.3f}" if fit.line else ""
            parts.append(f"{fit.family} from {digits(scores[0])} to {digits(scores[-1])}{slope}")
    for p in panel.parities:
        parts.append(f"{p.family} at parity with {p.reference.family} at {digits(p.ratio)} of its FLOPs")
    return f"{panel.metric.label} over training FLOPs ({count}): " + "; ".join(parts)


def _panel(axes: Axes, panel: Panel, looks: dict[str, dict[str, Any]], x: str) -> None:
    for fit in panel.fits:
        _fit(axes, fit, looks[fit.family])
    _arrows(axes, panel.parities, looks)
    for parity in panel.parities:
        fit = next(fit for fit in panel.fits if fit.family == parity.family)
        if parity.outside and fit.line:
            places = _range(in_fit(fit.rungs), parity.flops)
            axes.plot(places, fit.line.predict(places), color=looks[fit.family]["color"], ls="--", lw=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(y=0.1)  # room for ratios
    if panel.metric.floor is not None and _floored([panel]):
        axes.axhline(panel.metric.floor, color=GREY, lw=1, ls=":")
    _ticks(axes)
    axes.set_xlabel(x)
    axes.set_title(f"{panel.metric.label} {panel.metric.arrow}", loc="left", fontsize="medium")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _fit(axes: Axes, fit: Fit, look: dict[str, Any]) -> None:
    """Points, filled where the fit uses them; the line over their range, with its band; the curve."""
    color = look["color"]
    for used, rungs in ((True, in_fit(fit.rungs)), (False, [r for r in fit.rungs if r.left_out])):
        places = [rung.flops for rung in rungs], [rung.score for rung in rungs]
        face = color if used else "none"
        axes.plot(*places, look["marker"], ms=6 if used else 5, color=color, mfc=face, alpha=1 if used else 0.45)
    for rung in fit.rungs:
        if len(rung.seeds) > 1 and not rung.left_out:
            axes.plot([rung.flops] * 2, [min(rung.seeds), max(rung.seeds)], color=color, lw=1)
    if fit.line is None:
        return
    places_at = _range(in_fit(fit.rungs))
    axes.plot(places_at, fit.line.predict(places_at), color=color, lw=1.6)
    if fit.line.noise.freedom:
        axes.fill_between(places_at, *fit.line.band(places_at), color=color, alpha=0.13, lw=0)
    if fit.curve and not fit.curve.why_not:
        axes.plot(places_at, fit.curve.predict(places_at), color=color, lw=1.2, ls=CURVED)


def _arrows(axes: Axes, parities: Sequence[Parity], looks: dict[str, dict[str, Any]]) -> None:
    """From the reference's largest run to the FLOPs at which each family has its score, with the ratio.

    They lie at one height: a shorter one covers a longer one, whose ratio stands at the rest of it.
    """
    covered: dict[bool, float] = {}  # FLOPs so far, by side
    for number, parity in enumerate(sorted(parities, key=lambda parity: abs(np.log(parity.ratio)))):
        color, y, side = looks[parity.family]["color"], parity.reference.score, parity.ratio > 1
        style = {"arrowstyle": "-|>", "color": color, "lw": 1.4}
        ends = (parity.flops, y), (parity.reference.flops, y)
        axes.annotate("", *ends, arrowprops=style, zorder=3 - number / 10)
        axes.annotate(
            f"{digits(parity.ratio)}×",
            (np.sqrt(covered.get(side, parity.reference.flops) * parity.flops), y),
            (0, -4 if number % 2 else 4),
            textcoords="offset points",
            ha="center",
            va="top" if number % 2 else "bottom",
            color=color,
            fontsize="small",
            fontweight="bold",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        covered[side] = parity.flops


def _range(rungs: Sequence[Rung], beyond: float | None = None) -> np.ndarray:
    """FLOPs `[64]` over the rungs, or from their nearest end to a place beyond."""
    low, high = min(r.flops for r in rungs), max(r.flops for r in rungs)
    if beyond is not None:
        low, high = (beyond, low) if beyond < low else (high, beyond)
    return np.geomspace(low, high, 64)


def _ticks(axes: Axes) -> None:
    """Plain numbers on the score's axis, powers of ten on that of FLOPs; more of them where it spans little."""
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5) if high < WIDE * low else (1,), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _power(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    if high < TALL * low:
        ticks = [tick for tick in MaxNLocator(6).tick_values(low, high) if tick > 0]
        axes.yaxis.set_major_locator(FixedLocator(ticks))
    else:
        axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 3, 5), numticks=12))
    axes.set_ylim(low, high)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))


def _power(value: float) -> str:
    """One digit and a power of ten; a digit of one is left out."""
    digit, power = f"{value:.0e}".split("e")
    return ("$" if digit == "1" else rf"${digit}\times") + f"10^{{{int(power)}}}$"


def _floored(panels: Sequence[Panel]) -> bool:
    return any(rung.left_out == FLOORED for panel in panels for fit in panel.fits for rung in fit.rungs)


def _keys(panels: Sequence[Panel]) -> list[Line2D]:
    """Legend entries of what is drawn beside the families."""
    fits = [fit for panel in panels for fit in panel.fits]
    kinds = sorted({fit.line.noise.kind for fit in fits if fit.line and fit.line.noise.freedom}, reverse=True)
    band = f", 95 % band by {' or '.join(map(NOISE.__getitem__, kinds))}" if kinds else ""
    keys = [Line2D([], [], color=GREY, lw=1.6, label=f"least squares{band}")]
    if any(fit.curve and not fit.curve.why_not for fit in fits):
        keys.append(Line2D([], [], color=GREY, lw=1.2, ls=CURVED, label="with a limit"))
    if any(parity.outside for panel in panels for parity in panel.parities):
        keys.append(Line2D([], [], color=GREY, lw=1, ls="--", label="extrapolated"))
    if any(rung.left_out for fit in fits for rung in fit.rungs):
        keys.append(Line2D([], [], color=GREY, marker="o", mfc="none", ls="none", label="left out"))
    if _floored(panels):
        keys.append(Line2D([], [], color=GREY, lw=1, ls=":", label="floor"))
    if any(panel.parities for panel in panels):
        keys.append(Line2D([], [], color=GREY, marker=">", lw=1.4, label="FLOPs at parity"))
    return keys
