"""Figures show what the fits found."""

import itertools

import numpy as np
import pytest

from ladders import ladder
from transfusion_jax.scaling.options import Options
from transfusion_jax.scaling.plots import describe_panel, draw_study
from transfusion_jax.scaling.points import in_fit
from transfusion_jax.scaling.study import study

LAWS = {
    "ours": {"fid": lambda c: 3e5 * c**-0.27, "loss_text": lambda c: 1 + 100 * c**-0.2},
    "chameleon": {"fid": lambda c: 5e5 * c**-0.27, "loss_text": lambda c: 1 + 150 * c**-0.2},
}


@pytest.fixture(scope="module")
def found():
    return study(ladder(LAWS, noise=0.01, seeds=(0, 1), elements=(1e7, 4e7)), Options(bootstrap=100), "here")


@pytest.fixture(scope="module")
def figure(found):
    return draw_study(found, found.panels)


def test_axes_are_logarithmic_and_labelled(figure, found):
    assert [axes.get_title("left") for axes in figure.axes] == ["FID ↓", "loss_text, nats per token ↓"]
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_xlabel() == "training compute, FLOPs (exact)"


@pytest.mark.parametrize(("flops", "label"), [("6nd", "6ND"), ("exact", "exact"), (None, "exact")])
def test_the_axis_says_which_flops_they_are(flops, label):
    found = study(ladder(LAWS), Options(bootstrap=0, flops=flops), "here")
    assert draw_study(found, found.panels).axes[0].get_xlabel() == f"training compute, FLOPs ({label})"


def test_the_legend_says_what_a_band_counts_as_noise():
    alone = study(ladder(LAWS, noise=0.01), Options(bootstrap=0), "here")
    texts = [text.get_text() for text in draw_study(alone, alone.panels).legends[0].get_texts()]
    assert "least squares, 95 % band by scatter about it" in texts


def test_ticks_of_a_short_ladder_do_not_touch():
    found = study(ladder(LAWS)[:4], Options(fit_on="all"), "here")
    figure = draw_study(found, found.panels)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels(which="both") if label.get_text()]
        boxes.sort(key=lambda box: box.x0)
        assert len(boxes) >= 2
        assert {label.get_text() for label in axes.get_xticklabels()} >= {r"$2\times10^{13}$", "$10^{14}$"}
        assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_points_that_fits_leave_out_are_hollow(figure, found):
    for axes, panel in zip(figure.axes, found.panels, strict=True):
        marked = [line for line in axes.lines if line.get_marker() in ("o", "s") and len(line.get_xdata())]
        count = {True: 0, False: 0}
        for line in marked:
            count[line.get_markerfacecolor() != "none"] += len(line.get_xdata())
        used = sum(len(in_fit(fit.rungs)) for fit in panel.fits)
        assert count == {True: used, False: 20 - used}
        assert count[False]


def test_lines_lie_on_the_fits_and_bands_around_them(figure, found):
    for axes, panel in zip(figure.axes, found.panels, strict=True):
        lines = [line for line in axes.lines if len(line.get_xdata()) == 64 and line.get_linestyle() == "-"]
        bands = [band.get_paths()[0].vertices for band in axes.collections]
        for fit, line, band in zip(panel.fits, lines, bands, strict=True):
            x = np.asarray(line.get_xdata())
            np.testing.assert_allclose(line.get_ydata(), fit.line.predict(x))
            low, high = fit.line.band(x[-1])
            at_end = band[np.isclose(band[:, 0], x[-1]), 1]
            assert (at_end.min(), at_end.max()) == pytest.approx((low, high))


def test_an_arrow_leads_to_parity_and_bears_the_ratio(figure, found):
    for axes, panel in zip(figure.axes, found.panels, strict=True):
        [parity] = panel.parities
        arrow, label = axes.texts
        assert label.get_text() == f"{parity.ratio:.3f}×"
        assert arrow.xy == (parity.flops, parity.reference.score)
        assert arrow.xyann == (parity.reference.flops, parity.reference.score)


def test_the_floor_is_drawn_where_a_point_is_at_it(figure):
    levels = [[line for line in axes.lines if line.get_linestyle() == ":"] for axes in figure.axes]
    [floor], none = ([line for line in lines if len(set(line.get_ydata())) == 1] for lines in levels)
    assert set(floor.get_ydata()) == {100}
    assert none == []


def test_the_legend_names_families_and_marks(figure, found):
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:2] == ["ours", "chameleon"]
    assert {"least squares, 95 % band by seeds alone", "left out", "floor", "FLOPs at parity"} <= set(texts)
    alone = draw_study(found, found.panels[:1], keys=False)
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["ours", "chameleon"]


def test_what_lies_beyond_the_rungs_is_dashed():
    found = study(ladder(LAWS), Options(bootstrap=0, reference="ours"), "here")
    figure = draw_study(found, found.panels)
    [parity] = found.panels[1].parities
    assert parity.outside == "above"
    ends = [line.get_xdata()[-1] for line in figure.axes[1].lines if line.get_linestyle() == "--"]
    assert max(ends) == pytest.approx(parity.flops)


def test_no_text_leaves_the_picture(figure):
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()


def test_the_description_says_what_is_seen(found):
    text = describe_panel(found, found.panels[0])
    assert text.startswith("FID over training FLOPs (exact): ours from ")
    assert "ours at parity with chameleon at " in text
