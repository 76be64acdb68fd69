"""What a row holds, and documents with images put into rows: dealt out evenly, or packed as tightly as they go.

A size is what a document takes of a row, and `left` is what each row still has, both in the columns of `Room`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from transfusion_jax.config import Config
from transfusion_jax.data.documents import Documents

ELEMENTS, IMAGES, TEXT, PATCHES = range(4)  # TEXT counts elements that may bear a loss
UNITS = ("elements", "images", "text elements", "patches")
OPTIONS = ("data.context_length", "data.max_images", "data.max_text", "data.max_patches")


@dataclass(frozen=True)
class Room:
    """A row's room. Patches count where images differ: of one size, their number is bounded by that of images."""

    elements: int
    images: int
    text: int  # elements that may bear a text loss
    one_size: int = 0  # patches of every image; 0: they differ
    patches: int = 0  # where they do
    patch_area: int = 1  # latent places of one patch
    image_marks: int = 2  # elements of an image beside its patches

    @classmethod
    def of(cls, config: Config) -> Room:
        """A row of this config."""
        data, model = config.data, config.model
        varied = {name: m for name, m in config.modalities.items() if not m.one_size}
        return cls(
            data.context_length,
            data.max_images,
            data.text_capacity,
            0 if varied else model.patches,
            sum(m.patches for m in varied.values()),
            model.patch_area if varied else 1,
            model.image_marks,
        )

    @cached_property
    def capacity(self) -> np.ndarray:
        """What a row holds, `[columns]`: elements, images, elements that may bear a text loss, and patches."""
        return np.array([self.elements, self.images, self.text] + [self.patches] * (not self.one_size))

    def sizes(self, documents: Documents, chosen: np.ndarray | slice) -> np.ndarray:
        """What documents take of each, `[n, columns]`."""
        texts, images = (c[chosen].astype(np.int64) for c in (documents.text_lengths, documents.images))
        patches = images * self.one_size if self.one_size else documents.areas(chosen) // self.patch_area
        elements = 1 + texts + self.image_marks * images + patches
        columns = [elements, images, elements - patches - images]  # the mark before the patches has no text loss
        return np.stack(columns if self.one_size else [*columns, patches], 1)


def deal(sizes: np.ndarray, left: np.ndarray, load: np.ndarray) -> np.ndarray:
    """A row for each document, or −1: longest first, each to the row that holds least, so that loads end up equal.

    A row that lacks room for a document takes no more of those to come.

    Args:
        sizes: `[documents, columns]`.
        left: `[rows, columns]`; what is placed is taken off.
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
        sizes: `[documents, columns]`.
        left: `[rows, columns]`; what is placed is taken off.
    """
    row_of = np.full(len(sizes), -1)
    if not len(sizes):
        return row_of
    columns = sizes[:, :PATCHES]  # they say how many patches there are, too
    kind = np.ravel_multi_index(tuple(columns.T), tuple(columns.max(0) + 1))
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
    for column in range(left.shape[1]):
        left[:, column] -= np.bincount(rows, sizes[documents, column], len(left)).astype(np.int64)


def _order(key: np.ndarray) -> np.ndarray:
    """The indices that sort, ties in order: the same on every platform."""
    return np.argsort(key, kind="stable")
