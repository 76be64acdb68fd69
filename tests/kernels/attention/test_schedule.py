import jax.numpy as jnp
import numpy as np
import pytest

from layouts import LAYOUTS, LENGTH, layout_spans
from transfusion_jax.kernels.attention.schedule import count_blocks, inner_ranges, key_ranges, query_ranges
from transfusion_jax.kernels.spans import Spans, dense_mask

BLOCKS = [(8, 8), (16, 8), (8, 16), (20, 20), (7, 5), (64, 64)]
QUERIES = [slice(0, LENGTH), slice(19, 41), slice(40, 48)]


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("queries", QUERIES)
def test_ranges_hold_the_touched_blocks_and_no_others(queries, blocks):
    spans = Spans(*(x[:, queries] for x in layout_spans(list(LAYOUTS))))
    tiles = mask_tiles(spans, *blocks)
    touched = tiles.any((2, 4))
    keys = key_ranges(*spans, *blocks)
    np.testing.assert_array_equal(members(keys, touched.shape[2]), touched)
    by_key = query_ranges(keys, touched.shape[2])
    np.testing.assert_array_equal(members(by_key, touched.shape[1]).swapaxes(1, 2), touched)
    assert all(x.dtype == np.int32 for x in (*keys, *by_key))


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("queries", QUERIES)
def test_inner_blocks_are_those_that_need_no_mask(queries, blocks):
    spans = Spans(*(x[:, queries] for x in layout_spans(list(LAYOUTS))))
    whole = mask_tiles(spans, *blocks, outside=True).all((2, 4))
    whole[:, :, LENGTH // blocks[1] :] = False  # a last, short block is masked
    np.testing.assert_array_equal(members(inner_ranges(*spans, *blocks), whole.shape[2]), whole)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_jax_arrays_give_the_same(blocks):
    spans = layout_spans(list(LAYOUTS))
    traced = Spans(*map(jnp.asarray, spans))
    for function in (key_ranges, inner_ranges):
        for ours, theirs in zip(function(*traced, *blocks), function(*spans, *blocks), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    keys = key_ranges(*traced, *blocks)
    assert query_ranges(keys, 9).begin.dtype == jnp.int32


@pytest.mark.parametrize("blocks", BLOCKS)
def test_counts_are_those_of_the_dense_mask(blocks):
    spans = layout_spans(list(LAYOUTS))
    touched = mask_tiles(spans, *blocks).any((2, 4))
    causal = mask_tiles(Spans(np.zeros((1, LENGTH), int), np.arange(1, LENGTH + 1)[None]), *blocks).any((2, 4))
    counts = count_blocks(*spans, *blocks, keys=LENGTH)
    assert counts.visited == counts.touched == touched.sum()
    assert (counts.causal, counts.dense) == (len(LAYOUTS) * causal.sum(), touched.size)


def test_touched_is_counted_without_trusting_the_order_of_spans():
    start, end = np.array([[0, 1, 2, 3]]), np.array([[4, 2, 3, 4]])  # an end that goes back
    counts = count_blocks(start, end, 2, 1, keys=4)
    assert (counts.visited, counts.touched) == (4, 6)


def test_caption_rows_need_far_fewer_blocks_than_a_triangle():
    random = np.random.default_rng(0)
    spans = caption_rows(random, rows=8, length=4096, image=256)
    counts = count_blocks(*spans, 256, 256, keys=4096)
    assert counts.visited == counts.touched
    assert counts.causal == 8 * 136
    assert counts.causal >= 2.5 * counts.visited


def caption_rows(random, rows, length, image):
    """Captions of 20 to 40 tokens, each with its image, to the row's end; then padding."""
    start = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    end = start + 1
    for row in range(rows):
        at = 0
        while (size := int(random.integers(20, 41)) + 3 + image) <= length - at:
            start[row, at : at + size] = at
            end[row, at + size - 1 - image : at + size - 1] = at + size - 1
            at += size
    return Spans(start, end)


def mask_tiles(spans, query_block, key_block, outside=False):
    """The dense mask as `[rows, query blocks, queries, key blocks, keys]`, filled up with `outside`."""
    mask = np.asarray(dense_mask(*spans, LENGTH))
    rows, queries, keys = mask.shape
    widths = [(0, 0), (0, -queries % query_block), (0, -keys % key_block)]
    mask = np.pad(mask, widths, constant_values=outside)
    return mask.reshape(rows, -1, query_block, mask.shape[2] // key_block, key_block)


def members(ranges, blocks):
    """Ranges as `[B, blocks of one kind, blocks of the other]` booleans."""
    block = np.arange(blocks)
    return (np.asarray(ranges.begin)[..., None] <= block) & (block < np.asarray(ranges.end)[..., None])
