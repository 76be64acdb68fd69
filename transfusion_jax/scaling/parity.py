"""The parity FLOP ratio: what a family needs of another one's compute to reach its score.

As the paper's section 4.2 has it: the score of the reference at its largest compute, inverted on the other family's
line, over that compute. Below 1 the other family is the cheaper one.

The interval is a bootstrap of residuals, each family's drawn from its own. Pairs are not drawn: compute is chosen,
not sampled, and five pairs drawn from five are often three different ones, at times one, which makes no line.
Percentiles of so few residuals would be too narrow, so they are freed of leverage and widened by Student's t over
the normal quantile (`tests/scaling/test_parity.py` counts how often intervals hold the truth).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from transfusion_jax.scaling.fits import CONFIDENCE, Curve, Line, residuals
from transfusion_jax.scaling.points import Rung

BELOW, ABOVE = "below", "above"


@dataclass(frozen=True)
class Parity:
    """What one family needs to reach the reference's score."""

    family: str
    reference: Rung  # the reference's at its largest compute
    flops: float  # at which the family's line has the reference's score
    interval: tuple[float, float] | None  # of the ratio; an end may be infinite; none without residuals
    reference_noise: bool  # whether the interval holds the reference's own scatter about its line
    outside: str  # "below" or "above" where `flops` lies beyond the family's rungs: extrapolated; else empty
    by_curve: float | None  # the ratio on the family's curve, where its limit is identified

    @property
    def ratio(self) -> float:
        """The parity FLOP ratio."""
        return self.flops / self.reference.flops


def find_parity(
    rungs: Sequence[Rung],
    line: Line,
    curve: Curve | None,
    reference: Rung,
    reference_residuals: np.ndarray | None,
    count: int,
    seed: int,
) -> Parity:
    """Inverts the line of a family's rungs at the reference's score.

    Args:
        rungs: those that the line was fitted to.
        line: of these rungs; it improves with compute.
        curve: through them, for comparison.
        reference: the rung whose score is to be reached.
        reference_residuals: of the reference's own line, widened; None takes its score as exact.
        count: draws of the bootstrap; 0 leaves the interval out.
        seed: of the draws.
    """
    flops = line.invert(reference.score)
    places = [rung.flops for rung in rungs]
    outside = BELOW if flops < min(places) else ABOVE if flops > max(places) else ""
    interval = None
    own = widened(line, rungs)
    if count and own is not None:
        rng = np.random.default_rng(seed)
        draws = _draw(rungs, line, own, reference.score, reference_residuals, count, rng)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")  # draws may be infinite
        interval = float(np.exp(low) / reference.flops), float(np.exp(high) / reference.flops)
    noise = interval is not None and reference_residuals is not None
    by_curve = curve.invert(reference.score) / reference.flops if curve and not curve.why_not else None
    return Parity(rungs[0].family, reference, flops, interval, noise, outside, by_curve)


def widened(line: Line | None, rungs: Sequence[Rung]) -> np.ndarray | None:
    """Residuals as the bootstrap draws them; none where there is no line, or no degree of freedom."""
    if line is None or not line.freedom:
        return None
    return residuals(line, rungs) * line.quantile / stats.norm.ppf((1 + CONFIDENCE) / 2)


def _draw(
    rungs: Sequence[Rung],
    line: Line,
    own: np.ndarray,
    score: float,
    reference_residuals: np.ndarray | None,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """log(FLOPs) at parity `[count]`, each of a line through scores with other residuals."""
    x = np.log([rung.flops for rung in rungs]) - line.centre
    y = line.level + line.slope * x + rng.choice(own, (count, len(x)))
    target = np.full(count, np.log(score))
    if reference_residuals is not None:
        target = target + rng.choice(reference_residuals, count)
    level, slope = y.mean(1), y @ x / line.spread
    with np.errstate(divide="ignore", invalid="ignore"):
        reached = line.centre + (target - level) / slope
    never = np.where((target - level) * line.slope > 0, np.inf, -np.inf)  # a line that does not improve
    return np.where(slope * line.slope > 0, reached, never)
