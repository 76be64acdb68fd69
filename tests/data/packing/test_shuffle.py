import numpy as np
import pytest
from scipy import stats

from transfusion_jax.data.packing.shuffle import shuffled

SIZES = [*range(1, 70), 127, 128, 1000, 4095, 4096, 4097, 2**16 - 1, 2**16, 2**16 + 1, 999_983]


@pytest.mark.parametrize("seed", [0, 7, (3, 2**64 - 1)])
def test_every_entry_comes_once(seed):
    for size in SIZES:
        for turn in (0, 1, 12345):
            order = shuffled(np.arange(size), size, seed, turn)
            assert np.all(np.bincount(order, minlength=size) == 1)


@pytest.mark.parametrize("size", [10**8, 10**8 + 7, 2**40, 2**40 - 87, 2**62])
def test_parts_of_very_large_permutations_hold_no_entry_twice(size):
    index = np.concatenate([np.arange(50_000), size // 2 + np.arange(50_000), size - 1 - np.arange(50_000)])
    entries = shuffled(index, size, 0)
    assert len(np.unique(entries)) == len(index)
    assert entries.min() >= 0
    assert entries.max() < size
    assert stats.kstest(entries / size, "uniform").pvalue > 1e-4


def test_any_entry_can_be_asked_for_alone():
    whole = shuffled(np.arange(100_000), 100_000, 5, 2)
    for index in (0, 1, 17_000, 99_999):
        assert shuffled(index, 100_000, 5, 2) == whole[index]
    grid = np.array([[5, 99], [70_000, 5]])
    np.testing.assert_array_equal(shuffled(grid, 100_000, 5, 2), whole[grid])
    assert shuffled(np.arange(0), 0, 5).shape == (0,)


def test_each_index_may_have_its_own_turn():
    index, turn = np.arange(40_000) % 1000, np.arange(40_000) // 1000
    expected = np.concatenate([shuffled(np.arange(1000), 1000, 1, t) for t in range(40)])
    np.testing.assert_array_equal(shuffled(index, 1000, 1, turn), expected)


def test_the_permutation_is_the_same_on_every_platform():
    assert shuffled(np.arange(12), 12, (1, 2), 3).tolist() == [5, 0, 1, 9, 10, 7, 4, 2, 8, 6, 3, 11]
    assert shuffled(np.arange(4), 10**8, 0).tolist() == [31007130, 19151638, 47390750, 35114446]


def test_seeds_and_turns_give_different_permutations():
    orders = [shuffled(np.arange(1000), 1000, seed, turn) for seed in (0, 1, (0, 1), (1, 1)) for turn in range(5)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert np.mean(order == other) < 0.02
            assert abs(stats.spearmanr(order, other).statistic) < 0.2


@pytest.mark.parametrize("size", [2, 3, 5, 10, 17, 64])
def test_each_place_holds_every_entry_equally_often(size):
    turns = 20_000
    orders = shuffled(np.tile(np.arange(size), (turns, 1)), size, 0, np.repeat(np.arange(turns), size))
    counts = np.stack([np.bincount(column, minlength=size) for column in orders.T])
    surprise = np.sum((counts - turns / size) ** 2) / (turns / size)
    assert 1e-4 < stats.chi2.sf(surprise, (size - 1) ** 2) < 1 - 1e-4


def test_all_orders_of_few_entries_are_equally_frequent():
    turns = 24_000
    orders = shuffled(np.tile(np.arange(5), (turns, 1)), 5, 0, np.repeat(np.arange(turns), 5))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 120
    assert stats.chisquare(counts).pvalue > 1e-4


def test_neighbours_in_a_large_permutation_are_independent():
    order = shuffled(np.arange(200_000), 10**8, 0)
    cells = np.floor(order / 10**8 * 20).astype(int)
    table = np.bincount(cells[:-1] * 20 + cells[1:], minlength=400)
    assert stats.chisquare(table).pvalue > 1e-4


@pytest.mark.parametrize("size", [-1, 2**62 + 1])
def test_sizes_that_no_permutation_has_are_refused(size):
    with pytest.raises(ValueError, match="a permutation of"):
        shuffled(0, size, 0)
