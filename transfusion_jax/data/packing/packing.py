"""Documents with images into rows: dealt out evenly, or packed as tightly as they go.

A size is what a document takes of a row, and `left` is what each row still has, both in the columns below.
"""

from __future__ import annotations

import numpy as np

ELEMENTS, IMAGES, TEXT = range(3)  # TEXT counts elements that may bear a loss


def deal(sizes: np.ndarray, left: np.ndarray, load: np.ndarray) -> np.ndarray:
    """A row for each document, or −1: longest first, each to the row that holds least, so that loads end up equal.

    A row that lacks room for a document takes no more of those to come.

    Args:
        sizes: `[documents, 3]`.
        left: `[rows, 3]`; what is placed is taken off.
        load: `[rows]`, the elements by which rows are compared; what is placed is added.
    """
    row_of = np.full(len(sizes), -1)
    order = _order(-sizes[:, ELEMENTS])
    open_rows = np.ones(len(left), bool)
    at = 0
    while at < len(order) and open_rows.any():
        rows = np.flatnonzero(open_rows)
        rows = rows[_order(load[rows] * (left.max() + 1) - left[rows, ELEMENTS])]
        longest = sizes[order[at], ELEMENTS]
        lower = np.searchsorted(
            load[rows], load[rows[0]] + longest
        )  # the others hold more than the first will then
        documents = order[at : at + min(max(lower, 1), len(order) - at)]
        rows = rows[: len(documents)]
        fits = np.all(sizes[documents] <= left[rows], axis=1)
        open_rows[rows[~fits]] = False
        _place(documents[fits], rows[fits], sizes, left, row_of)
        load[rows[fits]] += sizes[documents[fits], ELEMENTS]
        at += len(documents)
    return row_of


def best_fit(sizes: np.ndarray, left: np.ndarray) -> np.ndarray:
    """A row for each document, or −1: longest first, each to the row with the least room that it fits.

    Args:
        sizes: `[documents, 3]`.
        left: `[rows, 3]`; what is placed is taken off.
    """
    row_of = np.full(len(sizes), -1)
    if not len(sizes):
        return row_of
    kind = np.ravel_multi_index(tuple(sizes.T), tuple(sizes.max(0) + 1))
    order = _order(-kind)
    for documents in np.split(order, np.flatnonzero(np.diff(kind[order])) + 1):  # of one size
        size = sizes[documents[0]]
        rows = np.flatnonzero(left[:, ELEMENTS] >= size[ELEMENTS])
        rows = rows[_order(left[rows, ELEMENTS])]
        copies = np.cumsum(np.min(left[np.ix_(rows, size > 0)] // size[size > 0], axis=1))
        placed = documents[: copies[-1] if len(rows) else 0]
        chosen = rows[np.searchsorted(copies, np.arange(len(placed)), side="right")]
        _place(placed, chosen, sizes, left, row_of)
    return row_of


def _place(
    documents: np.ndarray, rows: np.ndarray, sizes: np.ndarray, left: np.ndarray, row_of: np.ndarray
) -> None:
    row_of[documents] = rows
    for column in (ELEMENTS, IMAGES, TEXT):
        left[:, column] -= np.bincount(rows, sizes[documents, column], len(left)).astype(np.int64)


def _order(key: np.ndarray) -> np.ndarray:
    """The indices that sort, ties in order: the same on every platform."""
    return np.argsort(key, kind="stable")
