"""Fits to a family's rungs: a straight line in the logarithms, a curve with a limit, and what they predict.

The line is ordinary least squares of log(score) on log(FLOPs), as in the paper's section 4.2. Intervals take the
residuals to be normal and use Student's t, since rungs are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from transfusion_jax.scaling.metrics import LOWER, Metric
from transfusion_jax.scaling.points import Rung

CONFIDENCE = 0.95
SHARES = (0.0, 0.5, 0.8, 0.95)  # of the best score: limits that the curve's fit starts from
STEEPEST = 5.0  # exponent of the curve; a fit that reaches it follows one point
FLAT = 1e8  # condition of the Jacobian from which on a direction of it is only rounding
CURVE_NEEDS = 4  # rungs: three parameters, and one to say how well they are known


@dataclass(frozen=True)
class Line:
    """score = exp(level) · (FLOPs / exp(centre)) ^ slope."""

    slope: float
    level: float  # logarithm of the score at the centre
    centre: float  # mean of log(FLOPs)
    spread: float  # Σ (log(FLOPs) − centre)²
    sigma: float  # standard deviation of log(score) about the line
    count: int
    r2: float  # share of the variance that the line explains

    @property
    def freedom(self) -> int:
        """Degrees of freedom: without any there are no intervals."""
        return self.count - 2

    @property
    def slope_error(self) -> float:
        """Half the width of the slope's interval."""
        return self.quantile * self.sigma / np.sqrt(self.spread)

    @property
    def quantile(self) -> float:
        """Student's t for the intervals; infinite without a degree of freedom."""
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom)) if self.freedom else np.inf

    def predict(self, flops: float | np.ndarray) -> np.ndarray:
        """Scores on the line."""
        return np.exp(self.level + self.slope * (np.log(flops) - self.centre))

    def band(self, flops: float | np.ndarray, new_run: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The interval of the line at these FLOPs, or of the score of one more run there."""
        share = 1 / self.count + (np.log(flops) - self.centre) ** 2 / self.spread
        half = self.quantile * self.sigma * np.sqrt(share + new_run)
        middle = self.predict(flops)
        return middle * np.exp(-half), middle * np.exp(half)

    def invert(self, score: float) -> float:
        """The FLOPs at which the line has this score."""
        return float(np.exp(self.centre + (np.log(score) - self.level) / self.slope))

    def improves(self, metric: Metric) -> bool:
        """Whether more FLOPs give better scores."""
        return self.slope < 0 if metric.better == LOWER else self.slope > 0


@dataclass(frozen=True)
class Curve:
    """score = E + A · FLOPs ^ −exponent where lower is better; its reciprocal where higher is.

    Limit and interval are scores: what no amount of compute goes beyond. `why_not` says why they are not to be
    relied on; where it is empty the data identify them.
    """

    limit: float
    interval: tuple[float, float]  # of the limit; an end may be infinite
    exponent: float
    amplitude: float  # logarithm of A · exp(−exponent · centre), in scores or reciprocals
    centre: float
    better: str
    why_not: str

    def predict(self, flops: float | np.ndarray) -> np.ndarray:
        """Scores on the curve."""
        rest = np.exp(self.amplitude - self.exponent * (np.log(flops) - self.centre))
        return _turn(_turn(np.asarray(self.limit), self.better) + rest, self.better)

    def invert(self, score: float) -> float:
        """The FLOPs at which the curve has this score; infinite at its limit and beyond."""
        rest = float(_turn(np.asarray(score), self.better) - _turn(np.asarray(self.limit), self.better))
        return float(np.exp(self.centre + (self.amplitude - np.log(rest)) / self.exponent)) if rest > 0 else np.inf


@dataclass(frozen=True)
class HeldOut:
    """The largest rung, predicted from the others."""

    rung: Rung
    predicted: float
    interval: tuple[float, float] | None  # of one more run there; none from two rungs
    by_curve: float | None  # where the others identify a limit

    @property
    def error(self) -> float:
        """Relative error of the line's prediction."""
        return self.predicted / self.rung.score - 1


def why_no_line(rungs: Sequence[Rung]) -> str:
    """Why there is no line through them, or nothing."""
    count, places = len(rungs), _places(rungs)
    if places >= 2:
        return ""
    have = f"{count} point{'s' if count != 1 else ''}" + (" at the same FLOPs" if count > 1 else "")
    return f"{have}: a line takes 2 at different FLOPs, and 3 to say how well it is known"


def fit_line(rungs: Sequence[Rung]) -> Line:
    """The line through rungs at two different FLOPs or more."""
    x, y = _logarithms(rungs)
    centre, level = x.mean(), y.mean()
    spread = ((x - centre) ** 2).sum()
    slope = ((x - centre) * (y - level)).sum() / spread
    residue = ((y - level - slope * (x - centre)) ** 2).sum()
    total = ((y - level) ** 2).sum()
    sigma = np.sqrt(residue / (len(x) - 2)) if len(x) > 2 else 0.0
    r2 = 1 - residue / total if total else 1.0
    return Line(float(slope), float(level), float(centre), float(spread), float(sigma), len(x), float(r2))


def residuals(line: Line, rungs: Sequence[Rung]) -> np.ndarray:
    """Modified residuals of log(score), of mean 0 (Davison and Hinkley 1997, 6.2)."""
    x, y = _logarithms(rungs)
    free = 1 - 1 / line.count - (x - line.centre) ** 2 / line.spread
    useful = free > 1e-9  # a rung alone at its FLOPs, and all others at one place: the line passes through it
    raw = (y - line.level - line.slope * (x - line.centre))[useful] / np.sqrt(free[useful])
    return raw - raw.mean()


def fit_curve(rungs: Sequence[Rung], metric: Metric) -> Curve | None:
    """The curve with a limit, by least squares on logarithms from several starts; none below four places."""
    if _places(rungs) < CURVE_NEEDS:
        return None
    x, y = _logarithms(rungs)
    centre = x.mean()
    cost = y if metric.better == LOWER else -y  # logarithm of what falls
    x, best = x - centre, cost.min()  # the fit's unit is the best score: its limit is a share of that

    def parts(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        amplitude, exponent, share = parameters
        rest = np.exp(amplitude - exponent * x)
        return rest, rest + share

    def miss(parameters: np.ndarray) -> np.ndarray:
        return np.log(parts(parameters)[1]) - (cost - best)

    def slopes(parameters: np.ndarray) -> np.ndarray:
        rest, total = parts(parameters)
        return np.stack([rest, -x * rest, np.ones_like(x)], 1) / total[:, None]

    bounds = (-np.inf, 0.0, 0.0), (np.inf, STEEPEST, 1.0)
    starts = _starts(x, cost - best)
    fits = [optimize.least_squares(miss, start, slopes, bounds, x_scale="jac", ftol=1e-10) for start in starts]
    found = min(fits, key=lambda fit: fit.cost)
    amplitude, exponent, share = map(float, found.x)
    half = _half_width(found)
    limit, *ends = _turn(np.exp(best) * np.maximum([share, share - half, share + half], 0), metric.better).tolist()
    why_not = _doubt(exponent, share, half)
    return Curve(limit, (min(ends), max(ends)), exponent, amplitude + best, float(centre), metric.better, why_not)


def hold_out(rungs: Sequence[Rung], metric: Metric) -> HeldOut | None:
    """Predicts the largest rung from the smaller ones; none where those make no line."""
    *smaller, largest = sorted(rungs, key=lambda rung: rung.flops)
    if _places(smaller) < 2:
        return None
    line, curve = fit_line(smaller), fit_curve(smaller, metric)
    low, high = line.band(largest.flops, new_run=True)
    return HeldOut(
        largest,
        float(line.predict(largest.flops)),
        (float(low), float(high)) if line.freedom else None,
        float(curve.predict(largest.flops)) if curve and not curve.why_not else None,
    )


def _logarithms(rungs: Sequence[Rung]) -> tuple[np.ndarray, np.ndarray]:
    return np.log([rung.flops for rung in rungs]), np.log([rung.score for rung in rungs])


def _places(rungs: Sequence[Rung]) -> int:
    """How many different FLOPs there are."""
    return len({rung.flops for rung in rungs})


def _starts(x: np.ndarray, cost: np.ndarray) -> list[tuple[float, float, float]]:
    """For each share of the best as limit, the line through what is left."""
    starts = []
    for share in SHARES:
        slope, level = np.polyfit(x, np.log(np.exp(cost) - share), 1)
        starts.append((level, float(np.clip(-slope, 1e-3, STEEPEST / 2)), share))
    return starts


def _half_width(found: optimize.OptimizeResult) -> float:
    """Half the interval of the limit's share, from the curvature of the squares."""
    count, parameters = found.jac.shape
    scaled = found.jac / np.maximum(np.linalg.norm(found.jac, axis=0), 1e-300)
    if np.linalg.cond(scaled) > FLAT:
        return np.inf
    variance = np.linalg.inv(found.jac.T @ found.jac)[-1, -1] * 2 * found.cost / (count - parameters)
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - parameters) * np.sqrt(variance))


def _doubt(exponent: float, share: float, half: float) -> str:
    """Why the limit is not identified, or nothing."""
    if exponent > 0.99 * STEEPEST or share > 1 - 1e-6:
        return "the best score alone decides it"
    if share < 1e-3:
        return "no limit at all fits as well"
    if half > share / 2:
        return "its interval is wider than itself"
    return ""


def _turn(values: np.ndarray, better: str) -> np.ndarray:
    """Scores as what falls with compute, and back: themselves, or their reciprocals."""
    with np.errstate(divide="ignore"):
        return values if better == LOWER else 1 / values
