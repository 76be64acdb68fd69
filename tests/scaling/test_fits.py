"""Fits against SciPy's and NumPy's, and laws that are known."""

import numpy as np
import pytest
from scipy import optimize, stats

from ladders import rungs, seeded
from transfusion_jax.scaling import metrics
from transfusion_jax.scaling.fits import SCATTER, SEEDS, fit_curve, fit_line, hold_out, seed_noise, why_no_line

LOSS, SCORE = (metrics.known_metrics([name])[0] for name in ("loss_text", "geneval"))


@pytest.fixture(params=[3, 5, 9])
def noisy(request):
    rng = np.random.default_rng(request.param)
    flops = np.sort(10 ** rng.uniform(12, 16, request.param))
    return rungs(30 * flops**-0.1 * np.exp(0.05 * rng.standard_normal(request.param)), flops)


def logarithms(found):
    return np.log([r.flops for r in found]), np.log([r.score for r in found])


def test_the_line_is_scipys(noisy):
    x, y = logarithms(noisy)
    line, theirs = fit_line(noisy), stats.linregress(x, y)
    assert line.slope == pytest.approx(theirs.slope, rel=1e-10)
    assert line.level - line.slope * line.centre == pytest.approx(theirs.intercept, rel=1e-10)
    assert line.r2 == pytest.approx(theirs.rvalue**2, rel=1e-9)
    t = stats.t.ppf(0.975, len(x) - 2)
    assert line.slope_error == pytest.approx(t * theirs.stderr, rel=1e-9)
    np.testing.assert_allclose(line.predict(np.exp(x)), np.exp(theirs.intercept + theirs.slope * x), rtol=1e-10)
    assert line.invert(3.0) == pytest.approx(np.exp((np.log(3) - theirs.intercept) / theirs.slope), rel=1e-9)


def test_the_band_is_of_numpys_covariance(noisy):
    x, y = logarithms(noisy)
    at = np.geomspace(1e12, 1e17, 7)
    line = fit_line(noisy)
    coefficients, covariance = np.polyfit(x, y, 1, cov=True)  # scaled by the residuals' variance
    design = np.vander(np.log(at), 2)
    middle, variance = design @ coefficients, np.einsum("ij,jk,ik->i", design, covariance, design)
    t = stats.t.ppf(0.975, len(x) - 2)
    for new_run in (False, True):
        half = t * np.sqrt(variance + new_run * line.noise.sigma**2)
        low, high = line.band(at, int(new_run))
        np.testing.assert_allclose(np.log(low), middle - half, rtol=1e-6)
        np.testing.assert_allclose(np.log(high), middle + half, rtol=1e-6)


def test_residuals_have_the_variance_of_the_noise():
    """The line's bending towards five rungs takes two fifths of it away from raw ones."""
    rng = np.random.default_rng(0)
    sums = []
    for _ in range(2000):
        found = rungs(np.exp(0.1 * rng.standard_normal(5)))
        sums.append(np.square(fit_line(found).noise.residuals).mean())
    assert np.mean(sums) == pytest.approx(0.01, rel=0.05)


def test_a_rung_that_the_line_passes_through_has_no_residual():
    found = rungs([4.0, 5.0, 3.0], [1e12, 1e12, 1e15])
    assert len(fit_line(found).noise.residuals) == 2


def test_a_curve_with_a_limit_is_recovered():
    flops = np.geomspace(1e12, 1e18, 8)
    for better, scores in ((LOSS, 1.5 + 300 * flops**-0.2), (SCORE, 1 / (1.25 + 300 * flops**-0.2))):
        curve = fit_curve(rungs(scores, flops), better)
        assert curve.why_not == ""
        assert curve.limit == pytest.approx(1.5 if better is LOSS else 0.8, rel=1e-4)
        assert curve.exponent == pytest.approx(0.2, rel=1e-4)
        np.testing.assert_allclose(curve.predict(flops), scores, rtol=1e-6)
        assert curve.invert(float(scores[3])) == pytest.approx(flops[3], rel=1e-3)
        assert curve.invert(curve.limit * (0.9 if better is LOSS else 1.1)) == np.inf


def test_the_limits_interval_is_scipys():
    flops = np.geomspace(1e12, 1e18, 9)
    rng = np.random.default_rng(1)
    scores = (1.5 + 300 * flops**-0.2) * np.exp(0.003 * rng.standard_normal(9))
    x = np.log(flops) - np.log(flops).mean()
    law = lambda x, limit, level, slope: np.log(limit + np.exp(level - slope * x))  # noqa: E731
    found, covariance = optimize.curve_fit(law, x, np.log(scores), (1.0, 0.0, 0.1))
    half = stats.t.ppf(0.975, 6) * np.sqrt(covariance[0, 0])
    curve = fit_curve(rungs(scores, flops), LOSS)
    assert curve.limit == pytest.approx(found[0], rel=1e-4)
    np.testing.assert_allclose(curve.interval, (found[0] - half, found[0] + half), rtol=1e-3)


def test_a_limit_that_the_points_do_not_show_is_not_claimed():
    flops = np.geomspace(1e12, 1e15, 6)
    assert fit_curve(rungs(30 * flops**-0.1, flops), LOSS).why_not == "no limit at all fits as well"
    rng = np.random.default_rng(2)
    noisy = 30 * flops**-0.1 * np.exp(0.05 * rng.standard_normal(6))
    assert fit_curve(rungs(noisy, flops), LOSS).why_not
    level = np.array([3.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    assert fit_curve(rungs(level, flops), LOSS).why_not == "the best score alone decides it"
    assert fit_curve(rungs(noisy[:3], flops[:3]), LOSS) is None


def test_the_largest_rung_is_predicted_from_the_others():
    flops = np.geomspace(1e12, 1e15, 5)
    scores = 30 * flops**-0.1
    scores[-1] *= 1.1
    held = hold_out(rungs(scores, flops), LOSS)
    assert held.rung.flops == flops[-1]
    assert held.error == pytest.approx(1 / 1.1 - 1)
    assert hold_out(rungs(scores[:2], flops[:2]), LOSS) is None
    assert hold_out(rungs(scores[:3], flops[:3]), LOSS).interval is None


def test_the_curve_predicts_where_it_is_identified():
    flops = np.geomspace(1e12, 1e18, 7)
    held = hold_out(rungs(1.5 + 300 * flops**-0.2, flops), LOSS)
    assert held.by_curve == pytest.approx(held.rung.score, rel=1e-3)
    assert abs(held.error) > 0.02


def test_intervals_of_a_new_run_hold_it_95_times_in_a_hundred():
    rng = np.random.default_rng(3)
    flops = np.geomspace(1e12, 1e15, 5)
    inside = 0
    for _ in range(1000):
        *smaller, largest = rungs(30 * flops**-0.1 * np.exp(0.05 * rng.standard_normal(5)), flops)
        low, high = fit_line(smaller).band(largest.flops, runs=1)
        inside += low <= largest.score <= high
    assert inside / 1000 == pytest.approx(0.95, abs=0.03)


def test_seeds_say_what_noise_is_pooled_over_sizes_and_families():
    rng = np.random.default_rng(8)
    groups = [rng.normal(0, 0.02, count) for count in (3, 1, 4)]
    found = [
        rung
        for family, group in zip("abb", groups, strict=True)
        for rung in seeded(lambda c, group=group: np.exp(group), [1e12], [len(group)], 0.0, rng, family)
    ]
    noise = seed_noise(found)
    squares = sum(((group - group.mean()) ** 2).sum() for group in groups)
    assert (noise.kind, noise.freedom) == (SEEDS, 5)
    assert noise.sigma == pytest.approx(np.sqrt(squares / 5))
    assert seed_noise(rungs([3.0, 2.0])) is None
    assert seed_noise(seeded(lambda c: 2.0, [1e12], [3], 0.0, rng)) is None  # nothing is known of it
    assert fit_line(rungs([3.0, 2.0, 1.9])).noise.kind == SCATTER


def test_the_band_of_seeds_is_as_wide_as_lines_differ():
    """Whatever the rungs miss of the line."""
    flops, runs, rng = np.geomspace(1e12, 1e15, 4), (3, 3, 1, 1), np.random.default_rng(9)
    found = seeded(lambda c: 30 * c**-0.1, flops, runs, 0.02, rng)
    line, noise = fit_line(found, seed_noise(found)), seed_noise(found)
    shifts = rng.standard_normal((4000, 4)) * noise.sigma / np.sqrt(runs)
    at = np.array([1e11, 3e13, 1e16])
    fits = np.polynomial.polynomial.polyfit(np.log(flops) - line.centre, shifts.T, 1)
    spread = (fits[0][:, None] + fits[1][:, None] * (np.log(at) - line.centre)).std(0)
    low, high = line.band(at)
    t = stats.t.ppf(0.975, noise.freedom)
    np.testing.assert_allclose(np.log(high / low) / 2, t * spread, rtol=0.05)
    assert line.slope_error == pytest.approx(t * fits[1].std(), rel=0.05)
    low, high = line.band(at, runs=3)
    np.testing.assert_allclose(np.log(high / low) / 2, t * np.hypot(spread, noise.sigma / np.sqrt(3)), rtol=0.05)


def test_lack_of_fit_is_the_f_test_on_all_runs():
    found = seeded(
        lambda c: 30 * c**-0.1, np.geomspace(1e12, 1e15, 4), (3, 2, 1, 2), 0.02, np.random.default_rng(1)
    )
    x = np.concatenate([[np.log(r.flops)] * len(r.seeds) for r in found])
    y = np.concatenate([np.log(r.seeds) for r in found])
    residue = ((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2).sum()
    pure = sum(((np.log(r.seeds) - np.log(r.seeds).mean()) ** 2).sum() for r in found)
    f = (residue - pure) / 2 / (pure / 4)
    test = fit_line(found, seed_noise(found)).lack_of_fit
    assert (test.f, test.freedom) == (pytest.approx(f), (2, 4))
    assert test.p == pytest.approx(stats.f.sf(f, 2, 4))
    assert fit_line(found[:2], seed_noise(found)).lack_of_fit is None
    assert fit_line(found).lack_of_fit is None


@pytest.mark.parametrize(("limit", "low", "high"), [(0.0, 0.03, 0.07), (1.0, 0.95, 1.0)])
def test_lack_of_fit_is_found_in_curves_and_seldom_in_lines(limit, low, high):
    rng, flops = np.random.default_rng(2), np.geomspace(1e12, 1e16, 5)
    found = [seeded(lambda c: limit + 300 * c**-0.2, flops, [3, 3, 3, 1, 1], 0.01, rng) for _ in range(800)]
    share = np.mean([fit_line(each, seed_noise(each)).lack_of_fit.p < 0.05 for each in found])
    assert low < share <= high


def test_curvature_is_no_noise_of_seeds():
    """The same seeds about a curve give the line's slope the same interval as about a line."""
    widths = []
    for limit in (0.0, 1.0):
        rng, flops = np.random.default_rng(3), np.geomspace(1e12, 1e16, 5)
        found = seeded(lambda c, limit=limit: limit + 300 * c**-0.2, flops, [3] * 5, 0.01, rng)
        widths.append((fit_line(found, seed_noise(found)).slope_error, fit_line(found).slope_error))
    (straight, _), (curved, scattered) = widths
    assert curved == pytest.approx(straight)
    assert scattered > 3 * curved


def test_too_few_points_are_counted():
    assert why_no_line(rungs([3.0])).startswith("1 point: a line takes 2")
    assert why_no_line(rungs([3.0, 2.0], [1e12, 1e12])).startswith("2 points at the same FLOPs")
    assert why_no_line(rungs([3.0, 2.0])) == ""
