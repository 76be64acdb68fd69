"""The parity FLOP ratio: what a family needs of another one's compute to reach its score.

As the paper's section 4.2 has it: the score of the reference at its largest compute, inverted on the other family's
line, over that compute. Below 1 the other family is the cheaper one. The same on its curve stands beside it.

An interval draws the noise of every rung, and of the reference's score, anew: that of seeds where there is such, or
residuals of each family about its own law (see `fits.Noise`). Pairs are not drawn: compute is chosen, not sampled,
and five pairs drawn from five are often three different ones, at times one, which makes no line. Percentiles of so
few residuals would be too narrow, so they are freed of leverage and widened by Student's t over the normal quantile
(`tests/scaling/test_parity.py` counts how often intervals hold the truth).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transfusion_jax.scaling.fits import TAIL, Curve, Noise, PowerLaw
from transfusion_jax.scaling.points import Rung

BELOW, ABOVE = "below", "above"
Interval = tuple[float, float]


@dataclass(frozen=True)
class Parity:
    """What one family needs to reach the reference's score."""

    family: str
    reference: Rung  # the reference's at its largest compute
    flops: float  # at which the family's line has the reference's score
    interval: Interval | None  # of the ratio; an end may be infinite; none without a degree of freedom
    noise: Noise  # that the line's interval assumes
    reference_noise: bool  # whether the interval holds the noise of the reference's score
    outside: str  # "below" or "above" where `flops` lies beyond the family's rungs: extrapolated; else empty
    by_curve: float | None  # the ratio on the family's curve, where its limit is identified
    curve_interval: Interval | None  # its own
    curve_noise: Noise | None  # that it assumes

    @property
    def ratio(self) -> float:
        """The parity FLOP ratio."""
        return self.flops / self.reference.flops


def find_parity(
    rungs: Sequence[Rung],
    line: PowerLaw,
    curve: Curve | None,
    reference: Rung,
    reference_noise: Noise | None,
    count: int,
    seed: int,
) -> Parity:
    """Inverts the line of a family's rungs at the reference's score, and the curve.

    Args:
        rungs: those that the line was fitted to.
        line: of these rungs; it improves with compute.
        curve: through them, for comparison.
        reference: the rung whose score is to be reached.
        reference_noise: of that score; None takes it as exact.
        count: draws for an interval; 0 leaves intervals out.
        seed: of the draws.
    """
    runs = [len(rung.seeds) for rung in rungs]
    known = reference_noise is not None and bool(reference_noise.freedom)

    def drawn(noise: Noise) -> tuple[np.ndarray, np.ndarray] | None:
        """Noise of the rungs `[count, rungs]`, and logarithms of the score to reach `[count]`."""
        if not count or not noise.freedom:
            return None
        rng = np.random.default_rng(seed)
        own, target = noise.draw(runs, count, rng), np.full(count, np.log(reference.score))
        if reference_noise is not None and known:
            target = target + reference_noise.draw([len(reference.seeds)], count, rng)[:, 0]
        return own, target

    def interval(logarithms: np.ndarray) -> Interval:
        low, high = np.quantile(logarithms, [TAIL, 1 - TAIL], method="inverted_cdf")  # draws may be infinite
        return float(np.exp(low) / reference.flops), float(np.exp(high) / reference.flops)

    flops = line.invert(reference.score)
    places = [rung.flops for rung in rungs]
    by_line = drawn(line.noise)
    used = curve if curve and not curve.why_not else None
    by_curve = drawn(used.noise) if used else None
    return Parity(
        rungs[0].family,
        reference,
        flops,
        interval(_on_lines(rungs, line, *by_line)) if by_line else None,
        line.noise,
        by_line is not None and known,
        BELOW if flops < min(places) else ABOVE if flops > max(places) else "",
        used.invert(reference.score) / reference.flops if used else None,
        interval(used.inverses(by_curve[1], by_curve[0])) if used and by_curve else None,
        used.noise if used else None,
    )


def _on_lines(rungs: Sequence[Rung], line: PowerLaw, noise: np.ndarray, target: np.ndarray) -> np.ndarray:
    """log(FLOPs) `[n]` at log(scores) `[n]`, each of the line through scores with other noise `[n, rungs]`."""
    x = np.log([rung.flops for rung in rungs]) - line.centre
    y = line.level + line.slope * x + noise
    level, slope = y.mean(1), y @ x / line.spread
    with np.errstate(divide="ignore", invalid="ignore"):
        reached = line.centre + (target - level) / slope
    never = np.where((target - level) * line.slope > 0, np.inf, -np.inf)  # a line that does not improve
    return np.where(slope * line.slope > 0, reached, never)
