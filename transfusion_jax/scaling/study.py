"""All fits and ratios of a file of points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transfusion_jax.config import nearest, require
from transfusion_jax.scaling import metrics as table
from transfusion_jax.scaling.fits import (
    SEEDS,
    Curve,
    HeldOut,
    Noise,
    PowerLaw,
    fit_curve,
    fit_line,
    hold_out,
    seed_noise,
    why_no_line,
)
from transfusion_jax.scaling.metrics import Metric
from transfusion_jax.scaling.options import BASELINE, Options
from transfusion_jax.scaling.parity import Parity, find_parity
from transfusion_jax.scaling.points import Point, Rung, comparable, in_fit, rungs

LINE, CURVE = "straight line", "curve with a limit"


@dataclass(frozen=True)
class Fit:
    """One family in one metric."""

    family: str
    rungs: list[Rung]  # by rising FLOPs, those that are left out as well
    line: PowerLaw | None
    curve: Curve | None
    held_out: HeldOut | None
    why_no_line: str


@dataclass(frozen=True)
class Panel:
    """One metric: a fit for each family that has it, and what the others need of the reference's compute."""

    metric: Metric
    fits: list[Fit]
    parities: list[Parity]
    why_no_parity: list[str]


@dataclass(frozen=True)
class Study:
    """Everything that was found in the points."""

    source: str
    points: list[Point]
    options: Options
    flops: str  # the count that was taken, a key of `options.FLOPS`
    reference: str | None  # the family, where there is one to compare with
    panels: list[Panel]
    unused: list[str]  # metrics of the points that the table does not know


def study(points: Sequence[Point], options: Options, source: str) -> Study:
    """Fits every metric and family.

    Raises:
        ConfigError: a metric or family that the points do not have, no metric at all, nothing to draw a line
            through, or a score that has no logarithm.
    """
    present = {name for point in points for name in point.scores}
    metrics = chosen(points, options.metrics)
    require(
        bool(metrics),
        f"{source} has no metric that is known ({', '.join(sorted(present)) or 'none at all'}): "
        "name one with its direction, as in --metric NAME:lower",
    )
    families = list(dict.fromkeys(point.family for point in points))
    reference = options.reference or (BASELINE if BASELINE in families else None)
    if reference is not None:
        require(reference in families, f"no point is of --reference {reference}; {nearest(reference, families)}")
    flops = options.flops or comparable(points)
    panels = [_panel(metric, families, points, flops, options, reference) for metric in metrics]
    require(
        any(fit.line for panel in panels for fit in panel.fits),
        f"{source}: nothing to fit. {_reasons(panels)}",
    )
    unused = sorted(present - {metric.name for metric in metrics}) if not options.metrics else []
    return Study(source, list(points), options, flops, reference, panels, unused)


def chosen(points: Sequence[Point], specs: Sequence[str]) -> list[Metric]:
    """The metrics that are named as `--metric` names them; none named: all of the table that the points have.

    Raises:
        ConfigError: no point has one of them, or it is not known and has no direction.
    """
    present = {name for point in points for name in point.scores}
    return [table.parse_metric(spec, present) for spec in specs] or table.known_metrics(present)


def assumes(noise: Noise, law: str) -> str:
    """What an interval of this noise about a law, `LINE` or `CURVE`, assumes."""
    if noise.kind == SEEDS:
        return f"the {law} is true, and runs deviate from it as seeds of one size do from each other"
    return f"every deviation from the {law}, curvature included, is noise"


def study_to_dict(found: Study) -> dict[str, Any]:
    """The study as JSON has it: what is infinite is null."""
    o = found.options
    return {
        "source": found.source,
        "flops": found.flops,
        "fit_on": o.fit_on,
        "reference": found.reference,
        "bootstrap": o.bootstrap,
        "seed": o.seed,
        "metrics": [_panel_dict(panel) for panel in found.panels],
        "unused": found.unused,
    }


def _panel(
    metric: Metric,
    families: Sequence[str],
    points: Sequence[Point],
    flops: str,
    options: Options,
    reference: str | None,
) -> Panel:
    found = {}
    for family in families:
        own = rungs([point for point in points if point.family == family], metric, flops, options.fit_on)
        if own:
            found[family] = own
    noise = seed_noise(rung for own in found.values() for rung in own)
    fits = {family: _fit(family, own, metric, noise) for family, own in found.items()}
    parities, why_not = [], []
    if reference is not None:
        for family in families:
            if family != reference:
                parity = _parity(metric, fits.get(family), fits.get(reference), noise, options)
                if isinstance(parity, Parity):
                    parities.append(parity)
                else:
                    why_not.append(f"{family}: {parity}")
    return Panel(metric, list(fits.values()), parities, why_not)


def _fit(family: str, found: list[Rung], metric: Metric, noise: Noise | None) -> Fit:
    used = in_fit(found)
    why_not = why_no_line(used)
    if why_not:
        return Fit(family, found, None, None, None, why_not)
    line, curve = fit_line(used, noise), fit_curve(used, metric, noise)
    return Fit(family, found, line, curve, hold_out(used, metric, noise), "")


def _parity(
    metric: Metric, fit: Fit | None, reference: Fit | None, noise: Noise | None, options: Options
) -> Parity | str:
    """The ratio, or why there is none."""
    if not metric.shared:
        return "the unit is each family's own"
    if fit is None or reference is None:
        return "only one of the two families has this metric"
    if fit.line is None:
        return fit.why_no_line
    if not fit.line.improves(metric):
        return "its line does not improve with compute"
    scored = in_fit(reference.rungs)
    if not scored:
        return f"every point of {reference.family} is left out"
    theirs = noise or _scatter(reference)
    return find_parity(in_fit(fit.rungs), fit.line, fit.curve, scored[-1], theirs, options.bootstrap, options.seed)


def _scatter(reference: Fit) -> Noise | None:
    """Of a score that is read off no law: about the curve where there is one, so that curvature does not count."""
    if reference.curve and not reference.curve.why_not:
        return reference.curve.noise
    return reference.line.noise if reference.line else None


def _reasons(panels: Sequence[Panel]) -> str:
    fits = [(panel.metric.name, fit) for panel in panels for fit in panel.fits]
    return "; ".join(f"{name} of {fit.family}: {fit.why_no_line}" for name, fit in fits)


def _panel_dict(panel: Panel) -> dict[str, Any]:
    m = panel.metric
    return {
        "name": m.name,
        "better": m.better,
        "floor": m.floor,
        "families": [_fit_dict(fit) for fit in panel.fits],
        "parity": [_parity_dict(parity) for parity in panel.parities],
        "why_no_parity": panel.why_no_parity,
    }


def _fit_dict(fit: Fit) -> dict[str, Any]:
    line, curve, held = fit.line, fit.curve, fit.held_out
    return {
        "family": fit.family,
        "points": [asdict(rung) for rung in fit.rungs],
        "line": line
        and {
            "slope": line.slope,
            "slope_error": _finite(line.slope_error),
            "score_at_centre": math.exp(line.level),
            "centre_flops": math.exp(line.centre),
            "r2": line.r2,
            "count": line.count,
            "noise": _noise_dict(line.noise, LINE),
            "lack_of_fit": line.lack_of_fit and asdict(line.lack_of_fit),
        },
        "why_no_line": fit.why_no_line,
        "curve": curve
        and {
            "limit": _finite(curve.limit),
            "interval": _ends(curve.interval),
            "exponent": curve.exponent,
            "identified": not curve.why_not,
            "why_not": curve.why_not,
            "noise": _noise_dict(curve.noise, CURVE),
        },
        "held_out": held
        and {
            "size": held.rung.size,
            "flops": held.rung.flops,
            "measured": held.rung.score,
            "predicted": held.predicted,
            "interval": _ends(held.interval),
            "noise": _noise_dict(held.noise, LINE),
            "error_percent": 100 * held.error,
            "predicted_by_curve": held.by_curve,
        },
    }


def _parity_dict(parity: Parity) -> dict[str, Any]:
    return {
        "family": parity.family,
        "reference": asdict(parity.reference),
        "flops": parity.flops,
        "ratio": parity.ratio,
        "interval": _ends(parity.interval),
        "noise": _noise_dict(parity.noise, LINE),
        "reference_noise": parity.reference_noise,
        "extrapolated": parity.outside or None,
        "ratio_by_curve": _finite(parity.by_curve) if parity.by_curve is not None else None,
        "interval_by_curve": _ends(parity.curve_interval),
        "noise_by_curve": parity.curve_noise and _noise_dict(parity.curve_noise, CURVE),
    }


def _noise_dict(noise: Noise, law: str) -> dict[str, Any]:
    return {"kind": noise.kind, "sigma": noise.sigma, "freedom": noise.freedom, "assumes": assumes(noise, law)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ends(interval: tuple[float, float] | None) -> list[float | None] | None:
    return None if interval is None else [_finite(end) for end in interval]
