import numpy as np
import pytest

from helpers import best_fit_decreasing
from transfusion_jax.data.packing.packing import ELEMENTS, best_fit, deal


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("place", [best_fit, lambda sizes, left: deal(sizes, left, np.zeros(len(left), int))])
def test_what_is_placed_is_taken_off_and_nothing_overflows(place, seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, (40, 4, 30), (random.integers(0, 300), 3))
    left = np.tile([100, 9, 60], (40, 1))
    before = left.copy()
    row_of = place(sizes, left)
    used = np.zeros_like(left)
    np.add.at(used, row_of[row_of >= 0], sizes[row_of >= 0])
    np.testing.assert_array_equal(before - used, left)
    assert left.min() >= 0


@pytest.mark.parametrize("seed", range(10))
def test_best_fit_is_that_of_the_textbook(seed):
    random = np.random.default_rng(seed)
    lengths = np.minimum(random.geometric(0.05, 2000) + 10, 100)
    left = np.tile([100, 1000, 1000], (2000, 1))
    row_of = best_fit(sized(lengths), left)
    expected = best_fit_decreasing(lengths, 100)
    assert sorted(left[np.unique(row_of), ELEMENTS]) == expected


def test_what_does_not_fit_is_left_out():
    left = np.tile([100, 1000, 1000], (3, 1))
    row_of = best_fit(sized([60, 60, 60, 60, 40, 40, 40, 40, 5]), left)
    assert np.sum(row_of[:4] >= 0) == np.sum(row_of[4:8] >= 0) == 3
    assert row_of[8] == -1
    assert not left[:, ELEMENTS].any()


@pytest.mark.parametrize("column", [1, 2])
def test_every_measure_of_a_row_counts(column):
    left = np.full((5, 3), 100)
    left[:, column] = 3
    sizes = np.ones((40, 3), int)
    assert np.sum(best_fit(sizes, left.copy()) >= 0) == 15
    assert np.sum(deal(sizes, left, np.zeros(5, int)) >= 0) == 15


@pytest.mark.parametrize("longest", [20, 300])
def test_dealing_makes_loads_equal(longest):
    random = np.random.default_rng(longest)
    lengths = np.minimum(random.geometric(0.05, 3000), longest) + 5
    load = np.zeros(100, int)
    row_of = deal(sized(lengths), np.full((100, 3), 10_000), load)
    np.testing.assert_array_equal(load, np.bincount(row_of, lengths, 100))
    assert np.ptp(load) <= lengths.min() * 2


def test_dealing_goes_on_from_the_loads_given():
    load = np.array([0, 50, 100])
    deal(sized([10] * 15), np.full((3, 3), 1000), load)
    assert load.tolist() == [100, 100, 100]


def sized(lengths):
    return np.stack([np.array(lengths), np.ones(len(lengths), int), np.ones(len(lengths), int)], 1)
