import numpy as np
import pytest

import proportions
from proportions import ALONE, CHOSEN, FORMED, RIGHT, UNSEEN, WHOLE, Graded
from transfusion_jax.evaluation.suites import shapes

SIDES = {"1x1": (1.0, 1.0), "2x1": (1.6, 0.8), "1x2": (0.8, 1.6), "3x2": (1.2, 0.8)}


def test_shares_have_wilsons_interval():
    assert proportions.share(np.array([True] * 50)) == pytest.approx([1, 0.9286, 1], abs=1e-4)
    assert proportions.share(np.arange(500) < 400) == pytest.approx([0.8, 0.7627, 0.8327], abs=1e-4)


def test_differences_are_paired_by_prompt_and_drawn_within_categories():
    places = proportions.resamples(["a", "b"] * 100)
    assert set((places[:, ::2] % 2).ravel()) == {0}
    one = np.arange(200) % 3 > 0
    same = proportions.bootstrapped(lambda a, b: a - b, (one, one), places)
    assert same == [0, 0, 0]
    other = one & (np.arange(200) >= 20)  # worse in 13 prompts
    value, low, high = proportions.bootstrapped(lambda a, b: a - b, (one, other), places)
    assert value == pytest.approx(13 / 200)
    assert 0.02 < low < value < high < 0.11


def test_the_table_has_every_proportion_and_says_what_no_run_was_trained_on(capsys):
    prompts = {p: shapes.make_prompts(70, "corners", sides) for p, sides in SIDES.items()}
    prompts[CHOSEN] = shapes.make_prompts(70, "corners", SIDES["2x1"], naming=True)
    right = dict.fromkeys(prompts, np.arange(70) < 63) | {UNSEEN: np.arange(70) < 56}
    mixed = {
        p: Graded(prompts[p], {RIGHT: right[p], WHOLE: right[p] & False, FORMED: np.ones(70, bool)})
        for p in prompts
    }
    result = proportions.summary(mixed, {"2x1": mixed["2x1"]})
    lines = proportions.table({"images": 70, **result}).splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines if line.startswith("| ")}
    assert list(rows)[2:] == [*ALONE, UNSEEN]
    assert rows["2x1"][0].startswith("90.0 % [")
    assert rows["2x1"][2] == "0.0 points [0.0, 0.0]"
    assert rows["1x2"][1:3] == ["—", "—"]
    assert rows[UNSEEN][0].startswith("80.0 % [")
    assert "3x2 as a share of the mean of the other three: 88.9 % [" in "\n".join(lines)
    assert "Form as the caption names it, left to choose: all 100.0 % [" in "\n".join(lines)
