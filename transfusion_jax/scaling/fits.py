"""Fits to a family's rungs: a straight line in the logarithms, a curve with a limit, and what they predict.

The line is ordinary least squares of log(score) on log(FLOPs), as in the paper's section 4.2. Intervals use the
noise that `Noise` says, and Student's t, since rungs are few.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from transfusion_jax.scaling.metrics import LOWER, Metric
from transfusion_jax.scaling.points import FLOORED, Rung

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
SEEDS, SCATTER = "seeds", "scatter"
EQUAL = 1e-9  # a deviation of seeds below this is rounding
SHARES = (0.0, 0.5, 0.8, 0.95)  # of the best score: limits that the curve's fit starts from
STEEPEST = 5.0  # exponent of the curve; a fit that reaches it follows one point
FLAT = 1e8  # condition of the Jacobian from which on a direction of it is only rounding
CURVE_NEEDS = 4  # rungs: three parameters, and one to say how well they are known


@dataclass(frozen=True)
class Noise:
    """What intervals take log(score) to differ from its law by.

    `SEEDS`: as runs do that differ in their seed alone. The law is taken to be true: what it misses is no noise.
    `SCATTER`: as the rungs lie about the law, where no two runs differ in their seed alone. Whatever the law
    misses, curvature included, counts as noise.
    """

    kind: str
    sigma: float  # standard deviation: of a run with SEEDS, of a rung with SCATTER
    freedom: int  # degrees of freedom of sigma: without any there are no intervals
    residuals: tuple[float, ...] = ()  # of SCATTER: those of the rungs, of mean 0, freed of leverage

    @property
    def quantile(self) -> float:
        """Student's t for the intervals; infinite without a degree of freedom."""
        return float(stats.t.ppf(1 - TAIL, self.freedom)) if self.freedom else np.inf

    def deviations(self, runs: Sequence[int]) -> np.ndarray:
        """Standard deviation of means of `runs` runs each."""
        return self.sigma / np.sqrt(runs) if self.kind == SEEDS else np.full(len(runs), self.sigma)

    def draw(self, runs: Sequence[int], count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws of the noise of such means `[count, len(runs)]`, widened so that their quantiles are Student's."""
        wide = self.quantile / stats.norm.ppf(1 - TAIL)
        if self.kind == SEEDS:
            return wide * self.deviations(runs) * rng.standard_normal((count, len(runs)))
        return rng.choice(wide * np.asarray(self.residuals), (count, len(runs)))


@dataclass(frozen=True)
class LackOfFit:
    """The F test of the straight line: the rungs' deviation from it over that between seeds."""

    f: float
    freedom: tuple[int, int]
    p: float  # probability of so large an F if the line were true


@dataclass(frozen=True)
class PowerLaw:
    """score = exp(level) · (FLOPs / exp(centre)) ^ slope."""

    slope: float
    level: float  # logarithm of the score at the centre
    centre: float  # mean of log(FLOPs)
    spread: float  # Σ (log(FLOPs) − centre)²
    count: int
    r2: float  # share of the variance that the line explains
    noise: Noise
    covariance: tuple[float, float, float]  # by the noise: of the level with itself and the slope, of the slope
    lack_of_fit: LackOfFit | None  # where seeds say what noise is, and there are three rungs

    @property
    def slope_error(self) -> float:
        """Half the width of the slope's interval."""
        return self.noise.quantile * float(np.sqrt(self.covariance[2]))

    def predict(self, flops: float | np.ndarray) -> np.ndarray:
        """Scores on the line."""
        return np.exp(self.level + self.slope * (np.log(flops) - self.centre))

    def band(self, flops: float | np.ndarray, runs: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The interval of the line at these FLOPs, or of the mean score of `runs` new runs there."""
        x = np.log(flops) - self.centre
        own, both, slope = self.covariance
        more = float(self.noise.deviations([runs])[0]) ** 2 if runs else 0.0
        half = self.noise.quantile * np.sqrt(own + 2 * x * both + x**2 * slope + more)
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
    noise: Noise
    share: float  # the limit's, of the best score or reciprocal
    # [3, rungs]: what the amplitude, the exponent's logarithm and the share's logit move by with each rung's
    # log(score); of no use unless the data identify the limit
    response: np.ndarray

    def predict(self, flops: float | np.ndarray) -> np.ndarray:
        """Scores on the curve."""
        rest = np.exp(self.amplitude - self.exponent * (np.log(flops) - self.centre))
        return _turn(_turn(np.asarray(self.limit), self.better) + rest, self.better)

    def invert(self, score: float) -> float:
        """The FLOPs at which the curve has this score; infinite at its limit and beyond."""
        limit = _turn(np.asarray(self.limit), self.better)
        return float(np.exp(self._inverse(np.log(score), self.amplitude, self.exponent, limit)))

    def inverses(self, scores: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """log(FLOPs) `[n]` at log(scores) `[n]`, each of the curve through rungs with other noise `[n, rungs]`.

        To first order in the noise, in scales on which exponents stay positive, and limits between nothing and the
        best score.
        """
        amplitude, exponent, logit = self.response @ noise.T
        share = special.expit(special.logit(self.share) + logit)
        limit = _turn(np.asarray(self.limit), self.better) / self.share * share
        return self._inverse(scores, self.amplitude + amplitude, self.exponent * np.exp(exponent), limit)

    def _inverse(self, scores: Any, amplitude: Any, exponent: Any, limit: Any) -> np.ndarray:
        """Of curves with these parameters; infinite at a limit and beyond."""
        rest = _turn(np.exp(scores), self.better) - limit
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(rest > 0, self.centre + (amplitude - np.log(rest)) / exponent, np.inf)


@dataclass(frozen=True)
class HeldOut:
    """The largest rung, predicted from the others."""

    rung: Rung
    predicted: float
    interval: tuple[float, float] | None  # of as many more runs there; none without a degree of freedom
    noise: Noise  # that the interval assumes, about a straight line
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


def seed_noise(rungs: Iterable[Rung]) -> Noise | None:
    """Of log(score), pooled within rungs, those of several families too; none where no two seeds differ."""
    logs = [np.log(rung.seeds) for rung in rungs if rung.left_out != FLOORED]
    freedom = sum(len(values) - 1 for values in logs)
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in logs)
    sigma = float(np.sqrt(squares / freedom)) if freedom else 0.0
    return Noise(SEEDS, sigma, freedom) if sigma > EQUAL else None


def fit_line(rungs: Sequence[Rung], noise: Noise | None = None) -> PowerLaw:
    """The line through rungs at two different FLOPs or more; without noise of seeds that is their scatter."""
    x, y = _logarithms(rungs)
    centre, level = x.mean(), y.mean()
    x = x - centre
    spread = (x**2).sum()
    slope = (x * (y - level)).sum() / spread
    missed = y - level - slope * x
    residue, total = (missed**2).sum(), ((y - level) ** 2).sum()
    response = np.stack([np.full(len(x), 1 / len(x)), x / spread])  # of level and slope to each rung's
    own = noise or _scatter(missed, response, np.stack([np.ones_like(x), x], 1))
    variances = own.deviations(_runs(rungs)) ** 2
    covariance = [float((response[i] * response[j] * variances).sum()) for i, j in ((0, 0), (0, 1), (1, 1))]
    r2 = 1 - residue / total if total else 1.0
    return PowerLaw(
        float(slope),
        float(level),
        float(centre),
        float(spread),
        len(x),
        float(r2),
        own,
        (covariance[0], covariance[1], covariance[2]),
        _lack_of_fit(x, y, _runs(rungs), noise),
    )


def fit_curve(rungs: Sequence[Rung], metric: Metric, noise: Noise | None = None) -> Curve | None:
    """The curve with a limit, by least squares on logarithms from several starts; none below four places.

    Args:
        rungs: what it goes through.
        metric: says which way it falls.
        noise: of seeds; without it that is the rungs' scatter about the curve.
    """
    if _places(rungs) < CURVE_NEEDS:
        return None
    x, y = _logarithms(rungs)
    centre = x.mean()
    sign = 1 if metric.better == LOWER else -1
    cost = sign * y  # logarithm of what falls
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
    response = _response(found.jac)
    own = noise or _scatter(-found.fun, response, found.jac)
    half = np.inf
    if own.freedom and np.all(np.isfinite(response)):
        half = own.quantile * float(np.linalg.norm(response[2] * own.deviations(_runs(rungs))))
    limit, *ends = _turn(np.exp(best) * np.maximum([share, share - half, share + half], 0), metric.better).tolist()
    why_not = _doubt(exponent, share, half)
    scale = [1.0, 1.0, 1.0] if why_not else [1.0, 1 / exponent, 1 / (share * (1 - share))]
    return Curve(
        limit,
        (min(ends), max(ends)),
        exponent,
        amplitude + float(best),
        float(centre),
        metric.better,
        why_not,
        own,
        share,
        sign * response * np.array(scale)[:, None],
    )


def hold_out(rungs: Sequence[Rung], metric: Metric, noise: Noise | None = None) -> HeldOut | None:
    """Predicts the largest rung from the smaller ones; none where those make no line."""
    *smaller, largest = sorted(rungs, key=lambda rung: rung.flops)
    if _places(smaller) < 2:
        return None
    line, curve = fit_line(smaller, noise), fit_curve(smaller, metric, noise)
    interval = None
    if line.noise.freedom:
        low, high = line.band(largest.flops, len(largest.seeds))
        interval = float(low), float(high)
    return HeldOut(
        largest,
        float(line.predict(largest.flops)),
        interval,
        line.noise,
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


def _runs(rungs: Sequence[Rung]) -> list[int]:
    return [len(rung.seeds) for rung in rungs]


def _scatter(missed: np.ndarray, response: np.ndarray, design: np.ndarray) -> Noise:
    """Of what a law misses of the rungs: modified residuals (Davison and Hinkley 1997, 6.2).

    Args:
        missed: of each rung, in the logarithm.
        response: of the law's parameters to the rungs `[parameters, rungs]`.
        design: of the law's values to its parameters `[rungs, parameters]`.
    """
    freedom = len(missed) - len(response)
    if freedom <= 0 or not np.all(np.isfinite(response)):
        return Noise(SCATTER, 0.0, 0)
    free = 1 - np.sum(design * response.T, 1)
    useful = free > 1e-9  # a rung alone at its FLOPs, and all others at one place: the line passes through it
    raw = missed[useful] / np.sqrt(free[useful])
    sigma = float(np.sqrt((missed**2).sum() / freedom))
    return Noise(SCATTER, sigma, freedom, tuple((raw - raw.mean()).tolist()))


def _lack_of_fit(x: np.ndarray, y: np.ndarray, runs: Sequence[int], noise: Noise | None) -> LackOfFit | None:
    """Every run weighs the same here, as the test wants it."""
    freedom = len(x) - 2
    if noise is None or not freedom:
        return None
    root = np.sqrt(runs)
    design = np.stack([np.ones_like(x), x], 1) * root[:, None]
    missed = root * y - design @ np.linalg.lstsq(design, root * y)[0]
    f = float((missed**2).sum()) / freedom / noise.sigma**2
    return LackOfFit(f, (freedom, noise.freedom), float(stats.f.sf(f, freedom, noise.freedom)))


def _response(jacobian: np.ndarray) -> np.ndarray:
    """How least-squares parameters move with the fitted values; infinite where a direction is only rounding."""
    scaled = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    if np.linalg.cond(scaled) > FLAT:
        return np.full(jacobian.T.shape, np.inf)
    moves: np.ndarray = np.linalg.solve(jacobian.T @ jacobian, jacobian.T)
    return moves


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
