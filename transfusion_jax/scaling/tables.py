"""Points and studies of them as tables and notes: the same rows for the terminal, the report and LaTeX."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transfusion_jax.scaling.fits import SCATTER, SEEDS, Curve, HeldOut, Noise, PowerLaw
from transfusion_jax.scaling.metrics import Metric
from transfusion_jax.scaling.options import ALL, EXACT, FRONTIER, SIX_ND
from transfusion_jax.scaling.parity import Parity
from transfusion_jax.scaling.points import BEATEN, FLOORED, Point
from transfusion_jax.scaling.study import CURVE, LINE, Fit, Panel, Study, assumes

FLOPS = {SIX_ND: "6ND", EXACT: "exact"}
COUNTS = {SIX_ND: "6ND, as the paper counts: patch coders are left out", EXACT: "exact, patch coders included"}
DOUBTFUL = 0.05  # a line whose points would lie so far off it less often is called so
FIT_ON = {FRONTIER: "each family's frontier", ALL: "all points"}
NOTHING = "–"
LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "±": r"$\pm$",
    "…": r"\ldots{}",
    "×": r"$\times$",
    "²": r"$^2$",
    "∞": r"$\infty$",
    "∝": r"$\propto$",
    "–": "--",
}
POWER = re.compile(r"(\d[\d.]*)e(\d+)")
MINUS = re.compile(r"(?<![\w.])-(?=\d)")


@dataclass(frozen=True)
class Table:
    """A title, column heads, and rows of cells."""

    title: str
    head: list[str]
    rows: list[list[str]]


def summary(found: Study) -> str:
    """What was read."""
    families = len({point.family for point in found.points})
    count = f"{len(found.points)} points of {families} {'family' if families == 1 else 'families'}"
    return f"{found.source}: {count}; {_count(found)}"


def tables(found: Study) -> list[Table]:
    """Fits, held-out predictions and ratios of a study; those that would be empty are left out."""
    fits = [(panel, fit) for panel in found.panels for fit in panel.fits]
    made = [
        Table(
            f"Fits to {FIT_ON[found.options.fit_on]}: score ∝ FLOPs^slope, and with a limit",
            ["metric", "family", "points", "noise", "slope, 95 %", "R²", "lack of fit", "limit, 95 %", "exponent"],
            [[_name(panel), fit.family, _used(fit), *_line(fit.line), *_curve(fit.curve)] for panel, fit in fits],
        ),
        Table(
            "Held out: the largest point, predicted from the smaller ones",
            ["metric", "family", "point", "measured", "noise", "line", "95 %", "error", "curve", "error"],
            [[_name(panel), fit.family, *_held_out(fit.held_out)] for panel, fit in fits if fit.held_out],
        ),
        Table(
            f"Parity FLOP ratio: FLOPs to reach {found.reference}'s score, over its own",
            [
                "metric",
                "family",
                "score",
                "at FLOPs",
                "noise",
                "by line",
                "95 %",
                "by curve",
                "95 %",
                "extrapolated",
            ],
            [[_name(panel), *_parity(parity)] for panel in found.panels for parity in panel.parities],
        ),
    ]
    return [table for table in made if table.rows]


def notes(found: Study) -> list[str]:
    """What a reader must know beside the numbers: points left out, lines and ratios that there are not."""
    metrics: dict[str, list[str]] = {}  # by note
    for panel in found.panels:
        for note in _notes(panel):
            metrics.setdefault(note, []).append(panel.metric.label)
    everywhere = len(found.panels)
    rungs = [rung for panel in found.panels for fit in panel.fits for rung in fit.rungs]
    lines = intervals(found)
    lines += [note if len(by) == everywhere else f"{'; '.join(by)}: {note}" for note, by in metrics.items()]
    if any(rung.left_out == BEATEN for rung in rungs):
        lines.append(
            "off the frontier, and left out: what its family beats with no more FLOPs (--fit-on all fits all)"
        )
    if unmeasured := [point.label for point in found.points if not point.scores]:
        lines.append(f"without any score, and left out: {'; '.join(unmeasured)}")
    if found.reference is None and len({point.family for point in found.points}) > 1:
        lines.append("no parity FLOP ratio: --reference FAMILY names the one to compare with")
    if found.unused:
        lines.append(f"not used: {', '.join(found.unused)}; --metric NAME:lower or NAME:higher takes one in")
    return lines


def intervals(found: Study) -> list[str]:
    """The assumptions of the intervals: a sentence for each kind of noise in the study."""
    noises = [fit.line.noise for panel in found.panels for fit in panel.fits if fit.line and fit.line.noise.freedom]
    said = []
    for kind in (SEEDS, SCATTER):
        of_kind = [noise for noise in noises if noise.kind == kind]
        if of_kind:
            said.append(
                f"95 %, noise of {kind}, assumes: {assumes(of_kind[0], LINE)} (limits, by curve: the {CURVE})"
            )
    if any(noise.kind == SEEDS for noise in noises):
        said.append(
            "lack of fit: the probability of points this far off their line if it is true (F test on seeds)"
        )
    return said


def study_text(found: Study) -> str:
    """The study for a terminal."""
    lines = [summary(found)]
    for table in tables(found):
        lines += ["", table.title, *align(table)]
    return "\n".join([*lines, "", *notes(found)]).rstrip()


def scores(points: Sequence[Point], metrics: Sequence[Metric]) -> Table:
    """A row for each family, size and number of elements: the mean over its seeds, ± their standard deviation."""
    groups: dict[tuple[str, str, float], list[Point]] = {}
    for point in points:
        groups.setdefault((point.family, point.size, point.elements), []).append(point)
    rows = []
    for (family, size, elements), group in groups.items():
        cells = [_spread([p.scores[m.name] for p in group if m.name in p.scores], len(group)) for m in metrics]
        rows.append([family, size, amount(elements), str(len(group)), *cells])
    return Table("", ["family", "size", "elements", "runs", *(f"{m.name} {m.arrow}" for m in metrics)], rows)


def latex(found: Study) -> str:
    """The tables for LaTeX with the package booktabs."""
    blocks = [f"% Written by transfusion scale plot from {found.source}. In the preamble: \\usepackage{{booktabs}}"]
    for table in tables(found):
        body = [_latex_row(table.head), r"\midrule", *map(_latex_row, table.rows)]
        columns = "l" * 2 + "r" * (len(table.head) - 2)
        blocks.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{escape('. '.join([table.title, _count(found), *intervals(found)]))}}}",
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(blocks) + "\n"


def align(table: Table) -> list[str]:
    """Lines of a table, its first two columns to the left, numbers to the right."""
    rows = [table.head, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    layout = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
    return [layout.format(*row) for row in rows]


def flops(value: float) -> str:
    """Three digits and a power of ten."""
    digits, power = f"{value:.2e}".split("e")
    return f"{digits}e{int(power)}"


def amount(value: float) -> str:
    """Three digits and k, M, B or T, as sizes and elements are usually given."""
    power = min(4, max(0, int(math.log10(max(value, 1)) // 3)))
    return f"{value / 1000**power:.3g}{('', 'k', 'M', 'B', 'T')[power]}"


def three_digits(value: float) -> str:
    """Three digits."""
    return "∞" if math.isinf(value) else f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def interval(ends: tuple[float, float] | None) -> str:
    """Both ends."""
    return NOTHING if ends is None else f"{three_digits(ends[0])} … {three_digits(ends[1])}"


def escape(cell: str) -> str:
    """A cell's text as LaTeX."""
    plain = "".join(LATEX.get(letter, letter) for letter in cell)
    return MINUS.sub("$-$", POWER.sub(r"$\1\\times10^{\2}$", plain))


def _spread(values: Sequence[float], runs: int) -> str:
    """Mean and deviation of the values, out of `runs` runs."""
    if not values:
        return NOTHING
    mean = three_digits(statistics.fmean(values))
    some = f" ({len(values)} of {runs})" if len(values) < runs else ""
    return (f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean) + some


def _count(found: Study) -> str:
    return f"FLOPs are {COUNTS[found.flops]}"


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"


def _notes(panel: Panel) -> Iterator[str]:
    for fit in panel.fits:
        if fit.why_no_line:
            yield f"{fit.family} has {fit.why_no_line}"
        floored = [f"{r.size} at {flops(r.flops)}" for r in fit.rungs if r.left_out == FLOORED]
        if floored:
            yield f"{fit.family} is at the floor of {panel.metric.floor:g}, and left out, with {', '.join(floored)}"
        if fit.line and fit.line.lack_of_fit and fit.line.lack_of_fit.p < DOUBTFUL:
            yield (
                f"{fit.family}'s points contradict a straight line ({_p(fit.line)}): slope, ratio and their "
                "intervals assume it all the same"
            )
        if fit.curve and fit.curve.why_not:
            yield f"{fit.family}'s limit is not identified: {fit.curve.why_not}"
    yield from (f"no ratio for {why}" for why in panel.why_no_parity)
    for parity in panel.parities:
        if parity.interval and not parity.reference_noise:
            yield f"the score of {parity.reference.family} counts as exact: no scatter about a line is known of it"
            break


def _name(panel: Panel) -> str:
    return f"{panel.metric.label} {panel.metric.arrow}"


def _used(fit: Fit) -> str:
    used = sum(not rung.left_out for rung in fit.rungs)
    return f"{used} of {len(fit.rungs)}"


def _line(line: PowerLaw | None) -> list[str]:
    if line is None:
        return [NOTHING] * 4
    known = line.noise.freedom
    error = f" ± {line.slope_error:.3f}" if known else ""
    r2 = f"{line.r2:.3f}" if line.count > 2 else NOTHING
    return [_noise(line.noise), f"{line.slope:.3f}{error}", r2, _p(line)]


def _noise(noise: Noise) -> str:
    """Its kind, and its standard deviation."""
    return f"{noise.kind} {100 * math.expm1(noise.sigma):.2g} %" if noise.freedom else NOTHING


def _p(line: PowerLaw) -> str:
    if line.lack_of_fit is None:
        return NOTHING
    p = line.lack_of_fit.p
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def _curve(curve: Curve | None) -> list[str]:
    if curve is None or curve.why_not:
        return [NOTHING] * 2
    return [f"{three_digits(curve.limit)} ({interval(curve.interval)})", f"{curve.exponent:.3f}"]


def _held_out(held: HeldOut | None) -> list[str]:
    assert held is not None
    measured, cells = held.rung.score, [NOTHING] * 2
    if held.by_curve is not None:
        cells = [three_digits(held.by_curve), _percent(held.by_curve / measured - 1)]
    ours = [three_digits(held.predicted), interval(held.interval), _percent(held.error)]
    return [held.rung.size, three_digits(measured), _noise(held.noise), *ours, *cells]


def _percent(value: float) -> str:
    return f"{round(value, 3) + 0:+.1%}"  # never −0.0


def _parity(parity: Parity) -> list[str]:
    by_curve = NOTHING if parity.by_curve is None else three_digits(parity.by_curve)
    reference = [three_digits(parity.reference.score), flops(parity.reference.flops)]
    by_line = [_noise(parity.noise), three_digits(parity.ratio), interval(parity.interval)]
    return [
        parity.family,
        *reference,
        *by_line,
        by_curve,
        interval(parity.curve_interval),
        parity.outside or "no",
    ]
