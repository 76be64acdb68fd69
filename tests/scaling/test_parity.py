"""The parity FLOP ratio: the paper's, known ones, and how often its interval holds the truth."""

import numpy as np
import pytest
from scipy import stats

from ladders import ladder, point, rungs, seeded
from transfusion_jax.config import ConfigError
from transfusion_jax.scaling import metrics
from transfusion_jax.scaling.fits import SCATTER, SEEDS, Noise, fit_curve, fit_line, seed_noise
from transfusion_jax.scaling.options import ALL, PAPER, Options
from transfusion_jax.scaling.parity import find_parity
from transfusion_jax.scaling.points import read_points
from transfusion_jax.scaling.study import study, study_to_dict
from transfusion_jax.scaling.tables import study_text

LAW = {"loss_text": lambda c: 40 * c**-0.1, "geneval": lambda c: 1e-4 * c**0.25}
CHEAPER = {  # reaches the same scores with 0.4 of the compute
    "ours": {name: lambda c, law=law: law(c / 0.4) for name, law in LAW.items()},
    "chameleon": LAW,
}


[LOSS] = metrics.known_metrics(["loss_text"])


def parity(found, reference, reference_noise=None, count=2000, seed=0, noise=None):
    return find_parity(found, fit_line(found, noise), None, reference, reference_noise, count, seed)


def test_the_papers_table_gives_the_papers_ratios():
    """Its table 3 prints 0.489, 0.526, 0.600 and 0.218: from scores with more digits, and perhaps more points."""
    found = study(read_points(PAPER), Options(bootstrap=0), PAPER)
    ratios = {panel.metric.name: p.ratio for panel in found.panels for p in panel.parities}
    expected = {"c4_perplexity": 0.491, "wikipedia_perplexity": 0.506, "llama_accuracy": 0.598, "cider": 0.234}
    assert ratios == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_a_known_ratio_is_recovered(noise):
    found = study(ladder(CHEAPER, noise, seeds=range(3)), Options(), "here")
    for panel in found.panels:
        [one] = panel.parities
        assert one.family == "ours"
        assert one.ratio == pytest.approx(0.4, rel=1e-9 if not noise else 0.15)
        assert one.interval[0] <= 0.4 * (1 + 1e-9)
        assert one.interval[1] >= 0.4 * (1 - 1e-9)
        assert one.reference_noise


def test_the_other_family_as_reference_gives_the_reciprocal():
    found = study(ladder(CHEAPER), Options(reference="ours", bootstrap=0), "here")
    for panel in found.panels:
        [one] = panel.parities
        assert one.family == "chameleon"
        assert one.ratio == pytest.approx(2.5)
        assert one.outside == "above"


def test_what_lies_outside_the_rungs_is_called_extrapolated():
    found = rungs([4.0, 3.5, 3.0])
    for score, outside in ((5.0, "below"), (3.4, ""), (2.0, "above")):
        assert parity(found, rungs([score])[0]).outside == outside


def wide(noise):
    """Student's t over the normal quantile."""
    return stats.t.ppf(0.975, noise.freedom) / stats.norm.ppf(0.975)


def test_the_interval_is_scipys_bootstrap_of_the_same_residuals():
    rng = np.random.default_rng(4)
    flops = np.geomspace(1e12, 1e16, 6)
    found = rungs(30 * flops**-0.1 * np.exp(0.02 * rng.standard_normal(6)), flops)
    line, reference = fit_line(found), rungs([1.1], [1e15])[0]
    x = np.log(flops)
    fitted = np.log(line.predict(flops))

    def log_ratio(drawn, axis):
        y = fitted + drawn
        slope = ((x - x.mean()) * y).sum(axis) / ((x - x.mean()) ** 2).sum()
        return x.mean() + (np.log(1.1) - y.mean(axis)) / slope - np.log(reference.flops)

    theirs = stats.bootstrap(
        (wide(line.noise) * np.array(line.noise.residuals),),
        log_ratio,
        n_resamples=20_000,
        method="percentile",
        vectorized=True,
        rng=5,
    ).confidence_interval
    ours = parity(found, reference, count=20_000).interval
    np.testing.assert_allclose(np.log(ours), theirs, atol=0.02 * (theirs.high - theirs.low))


@pytest.mark.parametrize(("count", "bare"), [(4, 0.78), (5, 0.83), (8, 0.90)])
def test_intervals_hold_the_truth_95_times_in_a_hundred(count, bare, monkeypatch):
    """And those of residuals that Student's t does not widen as often as docs/scaling.md says."""
    rng = np.random.default_rng(count)
    flops = np.geomspace(1e12, 1e16, count)
    ladders = [rungs(40 * flops**-0.1 * np.exp(0.02 * rng.standard_normal(count)), flops) for _ in range(800)]
    reference = rungs([40 * 4e15**-0.1], [8e15])[0]

    def share():
        intervals = [parity(found, reference, count=500, seed=seed).interval for seed, found in enumerate(ladders)]
        return np.mean([low <= 0.5 <= high for low, high in intervals])

    assert 0.91 < share() < 0.98
    monkeypatch.setattr(Noise, "quantile", stats.norm.ppf(0.975))
    assert share() == pytest.approx(bare, abs=0.03)


RUNS = 3, 3, 1, 1, 1


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_by_seeds_the_line_s_interval_holds_the_truth_where_its_law_does(limit):
    """95 times in a hundred; about a curve it does not, and lack of fit says so."""
    rng, flops = np.random.default_rng(10), np.geomspace(1e12, 1e16, 5)
    law = lambda c: limit + 300 * c**-0.2  # noqa: E731
    held, doubted = [], []
    for seed in range(500):
        found, [theirs] = seeded(law, flops, RUNS, 0.01, rng), seeded(law, [4e14], [1], 0.01, rng)
        noise = seed_noise(found)
        one = parity(found, theirs, noise, 300, seed, noise)
        held.append(one.interval[0] <= 1 <= one.interval[1])
        doubted.append(fit_line(found, noise).lack_of_fit.p < 0.05)
        assert (one.noise.kind, one.reference_noise) == (SEEDS, True)
    if limit:
        assert np.mean(held) < 0.5
        assert np.mean(doubted) > 0.9
    else:
        assert 0.92 < np.mean(held) < 0.98
        assert np.mean(doubted) < 0.08


@pytest.mark.parametrize("seeds", [True, False])
def test_the_curve_s_interval_holds_the_truth_of_a_curve(seeds):
    rng, flops = np.random.default_rng(11), np.geomspace(1e12, 1e17, 7)
    law = lambda c: 1.5 + 300 * c**-0.2  # noqa: E731
    held = []
    for seed in range(100):
        found, theirs = seeded(law, flops, [3] * 7 if seeds else [1] * 7, 0.003, rng), rungs([law(4e14)], [4e14])[0]
        noise = seed_noise(found)
        curve = fit_curve(found, LOSS, noise)
        if not curve.why_not:
            one = find_parity(found, fit_line(found, noise), curve, theirs, None, 500, seed)
            held.append(one.curve_interval[0] <= 1 <= one.curve_interval[1])
            assert one.curve_noise.kind == (SEEDS if seeds else SCATTER)
    assert len(held) > 90
    assert 0.9 <= np.mean(held) < 1


def test_the_curve_s_interval_is_open_at_its_limit():
    flops = np.geomspace(1e12, 1e17, 7)
    found = seeded(lambda c: 1.5 + 300 * c**-0.2, flops, [2] * 7, 0.003, np.random.default_rng(12))
    noise = seed_noise(found)
    curve = fit_curve(found, LOSS, noise)
    one = find_parity(found, fit_line(found, noise), curve, rungs([curve.limit * 1.0001])[0], noise, 500, 0)
    assert one.curve_interval[1] == np.inf
    assert np.isfinite(one.curve_interval[0])


def test_the_reference_s_own_scatter_widens_the_interval():
    rng = np.random.default_rng(6)
    flops = np.geomspace(1e12, 1e16, 6)
    found, theirs = (rungs(a * flops**-0.1 * np.exp(0.03 * rng.standard_normal(6)), flops) for a in (30, 33))
    alone, both = (parity(found, theirs[-1], noise) for noise in (None, fit_line(theirs).noise))
    assert both.interval[0] < alone.interval[0] < alone.ratio < alone.interval[1] < both.interval[1]
    assert both.ratio == alone.ratio
    assert (alone.reference_noise, both.reference_noise) == (False, True)


def test_a_curved_reference_does_not_widen_the_interval():
    """Its score is read off no line: what it differs by is its scatter about its curve, here none."""
    laws = {"ours": {"loss_text": LAW["loss_text"]}, "chameleon": {"loss_text": lambda c: 0.5 + 300 * c**-0.2}}
    [panel] = study(ladder(laws), Options(fit_on=ALL), "here").panels
    theirs = panel.fits[1]
    assert not theirs.curve.why_not
    assert theirs.line.noise.sigma > 0.005
    [one] = panel.parities
    assert one.interval == pytest.approx((one.ratio, one.ratio), rel=1e-6)


def test_a_line_that_may_as_well_be_level_has_an_open_interval():
    scores = np.array([3.0, 2.7, 3.1, 2.6, 2.9])
    one = parity(rungs(scores), rungs([2.5])[0])
    assert one.interval[1] == np.inf
    found = study([point(size=s, loss_text=y) for s, y in zip(("0.2M", "0.4M", "0.8M"), (3, 2.7, 2.9), strict=True)]
                  + [point("chameleon", loss_text=2.5)], Options(fit_on=ALL), "here")  # fmt: skip
    assert study_to_dict(found)["metrics"][0]["parity"][0]["interval"][1] is None


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    found, reference = rungs([4.0, 3.4, 3.1, 2.6]), rungs([3.0])[0]
    assert parity(found, reference).interval == parity(found, reference).interval
    assert parity(found, reference).interval != parity(found, reference, seed=1).interval
    assert parity(found, reference, count=0).interval is None
    assert parity(found[:2], reference).interval is None  # two rungs have no residuals


def test_a_family_s_own_unit_is_not_compared():
    laws = {family: {"loss_image": LAW["loss_text"]} for family in CHEAPER}
    [panel] = study(ladder(laws), Options(), "here").panels
    assert all(fit.line for fit in panel.fits)
    assert not panel.parities
    assert panel.why_no_parity == ["ours: the unit is each family's own"]


def test_reasons_for_no_ratio_are_said():
    worse = {"ours": {"loss_text": lambda c: c**0.1}, "chameleon": {"loss_text": LAW["loss_text"]}}
    [panel] = study(ladder(worse), Options(fit_on=ALL), "here").panels
    assert panel.why_no_parity == ["ours: its line does not improve with compute"]
    one = [point("ours", loss_text=3.0), *ladder({"chameleon": LAW})]
    loss = study(one, Options(), "here").panels[1]
    assert loss.why_no_parity[0].startswith("ours: 1 point: a line takes 2")
    floored = ladder({"ours": {"cider": lambda c: 1e-4 * c**0.4}, "chameleon": {"cider": lambda c: 1.0}})
    [panel] = study(floored, Options(), "here").panels
    assert panel.why_no_parity == ["ours: every point of chameleon is left out"]


def test_without_a_baseline_there_is_no_ratio():
    found = study(ladder({"a": LAW, "b": LAW}), Options(), "here")
    assert found.reference is None
    assert not any(panel.parities or panel.why_no_parity for panel in found.panels)
    assert "--reference FAMILY names the one" in study_text(found)


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        ([point(loss_text=2.0)], Options(), "nothing to fit. loss_text of ours: 1 point"),
        ([point(speed=2.0)], Options(), r"no metric that is known \(speed\).*--metric NAME:lower"),
        (ladder(CHEAPER), Options(reference="chamelon"), "no point is of --reference chamelon; did you mean 'cham"),
        (ladder(CHEAPER), Options(metrics=("fid",)), "--metric fid: no point has it"),
    ],
)
def test_what_cannot_be_studied_is_refused(points, options, message):
    with pytest.raises(ConfigError, match=message):
        study(points, options, "here")


def test_metrics_that_nobody_knows_are_named():
    points = [point(size=size, loss_text=2.0, speed=3.0) for size in ("0.2M", "0.4M")]
    assert study(points, Options(), "here").unused == ["speed"]
    found = study(points, Options(metrics=("speed:higher",)), "here")
    assert [panel.metric.name for panel in found.panels] == ["speed"]
    assert found.unused == []
