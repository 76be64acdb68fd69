"""The row plan: which pieces of which documents make up each row of one epoch.

Documents with images are never split: they are dealt over the rows so that each row holds nearly an equal share.
What is left of a row is filled exactly with pieces of the plain texts, cut where a row ends. So every row mixes
all sources, and the mixture's weights hold in elements over any stretch of rows.

An epoch is as long as it takes to read every source at least once; the others come round again, in a new order.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from transfusion_jax.config import ConfigError, DataConfig
from transfusion_jax.data.documents import Corpus, Source

ELEMENTS, IMAGES, TEXT = range(3)  # what a document takes of a row; TEXT counts elements that may bear a loss


@dataclass(frozen=True)
class RowPlan:
    """Columns of pieces, in row order: row r holds pieces `row_offset[r]` to `row_offset[r + 1]`."""

    piece_document: np.ndarray  # [pieces] int64, the corpus's number of the document
    piece_start: np.ndarray  # [pieces] int32, first element of the document
    piece_length: np.ndarray  # [pieces] int32
    row_offset: np.ndarray  # [rows + 1] int64

    @property
    def rows(self) -> int:
        """Rows in one epoch."""
        return len(self.row_offset) - 1

    @property
    def piece_row(self) -> np.ndarray:
        """The row of each piece, `[pieces]`."""
        return np.repeat(np.arange(self.rows), np.diff(self.row_offset))

    def elements(self) -> np.ndarray:
        """Elements used in each row, `[rows]`."""
        return np.bincount(self.piece_row, self.piece_length, self.rows).astype(np.int64)


def plan_rows(corpus: Corpus, data: DataConfig, patches: int, seed: int) -> RowPlan:
    """Plans one epoch.

    Args:
        corpus: the documents; each source holds either documents with images or plain texts.
        data: the context length and the caps per row.
        patches: elements per image.
        seed: of the order in which documents are taken.

    Raises:
        ConfigError: a document does not fit a row, or a source is empty or mixed.
    """
    sizes = [_sizes(source, patches) for source in corpus.sources]
    capacity = np.array([data.context_length, data.max_images, data.text_capacity])
    for source, size in zip(corpus.sources, sizes, strict=True):
        _check(source, size, capacity)
    total_weight = sum(source.weight for source in corpus.sources)
    shares = [source.weight / total_weight for source in corpus.sources]
    full = max(  # rows that would read every source once if nothing were lost
        math.ceil(size[:, ELEMENTS].sum() / (share * data.context_length))
        for size, share in zip(sizes, shares, strict=True)
    )
    random = np.random.default_rng([seed, 1])
    pictured = [s for s, size in enumerate(sizes) if size[:, IMAGES].any()]
    plain = {s: share for s, share in enumerate(shares) if s not in pictured}
    while True:
        taken = {s: _take(sizes[s][:, ELEMENTS], shares[s] * full * data.context_length, random) for s in pictured}
        row_of, left = _deal({s: sizes[s][taken[s]] for s in pictured}, full, capacity)
        seams = _split_room(np.minimum(left[:, ELEMENTS], left[:, TEXT]), plain)
        missing = max((sizes[s][:, ELEMENTS].sum() / max(seams[s][-1], 1) for s in plain), default=0)
        if missing <= 1:
            break
        if not any(ends[-1] for ends in seams.values()):
            raise ConfigError("captions use up data.max_text in every row and leave plain text no room: raise it")
        full = math.ceil(full * missing)

    pieces = [
        np.stack(
            [row_of[s], taken[s] + corpus.offsets[s], np.zeros_like(taken[s]), sizes[s][taken[s], ELEMENTS]],
            axis=1,
        )
        for s in pictured
    ]
    pieces += [_cut(corpus.offsets[s], sizes[s][:, ELEMENTS], seams[s], random) for s in plain]
    table = np.concatenate(pieces)  # row, document, start, length
    order = np.lexsort([random.random(len(table)), table[:, 0]])
    row, document, start, length = table[order].T
    offset = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(left)))])
    return RowPlan(document, start.astype(np.int32), length.astype(np.int32), offset.astype(np.int64))


def _sizes(source: Source, patches: int) -> np.ndarray:
    """What each document takes of a row, `[documents, 3]`."""
    images = np.array([d.images for d in source.documents], np.int64)
    elements = np.array([d.length(patches) for d in source.documents], np.int64)
    return np.stack([elements, images, elements - images * (patches + 1)], 1)  # BOI and patches bear no text loss


def _check(source: Source, size: np.ndarray, capacity: np.ndarray) -> None:
    if not len(size):
        raise ConfigError(f"source {source.name!r} holds no documents")
    images = size[:, IMAGES]
    if not images.any():
        return
    if not images.all():
        raise ConfigError(f"source {source.name!r} mixes plain texts with documents that hold images: split it")
    units = ("elements", "images", "text elements")
    options = ("data.context_length", "data.max_images", "data.max_text")
    for column, (unit, option) in enumerate(zip(units, options, strict=True)):
        worst = int(size[:, column].argmax())
        if size[worst, column] > capacity[column]:
            raise ConfigError(
                f"document {worst} of source {source.name!r} takes {size[worst, column]} {unit} and is not split: "
                f"{option} is {capacity[column]}"
            )


def _take(length: np.ndarray, elements: float, random: np.random.Generator) -> np.ndarray:
    """Documents that hold `elements` or just more: pass after pass, each in a new order."""
    passes = math.ceil(elements / length.sum())
    document = np.concatenate([random.permutation(len(length)) for _ in range(passes)])
    return document[: np.searchsorted(np.cumsum(length[document]), elements) + 1]


def _deal(
    sizes: dict[int, np.ndarray], rows: int, capacity: np.ndarray
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """A row for each document of each source, and what is left of each row, `[rows, 3]`.

    There are as many rows as asked for, or as many more as it takes for everything to fit.

    Raises:
        ConfigError: the rows asked for lack room for the images.
    """
    per_row = sum(size[:, IMAGES].sum() for size in sizes.values()) / rows
    if per_row > capacity[IMAGES]:
        raise ConfigError(
            f"a row of this mixture holds {per_row:.1f} images on average and data.max_images is "
            f"{capacity[IMAGES]}: raise it, or give plain text more weight"
        )
    while True:
        left = np.tile(capacity, (rows, 1))
        row_of = {s: _balance(size, left) for s, size in sizes.items()}
        if all(row is not None for row in row_of.values()):
            return {s: np.asarray(row) for s, row in row_of.items()}, left
        rows += max(1, rows // 100)


def _balance(sizes: np.ndarray, left: np.ndarray) -> np.ndarray | None:
    """A row for each document, which is taken off `left`; None if one fits nowhere.

    Longest first, each goes to the row that holds least of this source, so that rows end up with equal shares.
    """
    row_of = np.empty(len(sizes), np.int64)
    heap = [(0, -int(room), row) for row, room in enumerate(left[:, ELEMENTS])]
    heapq.heapify(heap)
    for document in np.argsort(-sizes[:, ELEMENTS], kind="stable"):
        size, aside = sizes[document], []
        while heap and np.any(size > left[heap[0][2]]):
            aside.append(heapq.heappop(heap))
        if not heap:
            return None
        load, _, row = heap[0]
        left[row] -= size
        row_of[document] = row
        heapq.heapreplace(heap, (load + int(size[ELEMENTS]), -int(left[row, ELEMENTS]), row))
        for entry in aside:
            heapq.heappush(heap, entry)
    return row_of


def _split_room(room: np.ndarray, shares: dict[int, float]) -> dict[int, np.ndarray]:
    """For each source, where its text ends in each row when all its text is laid end to end, `[rows + 1]`.

    The running total is split, not each row's room, so that rounding never adds up; one source after the other
    is split off, so that no row's part is ever negative.
    """
    total = np.concatenate([[0], np.cumsum(room)])
    weight = sum(shares.values())
    seams = {}
    for s, share in shares.items():
        seams[s] = np.rint(total * (share / weight)).astype(np.int64)
        total, weight = total - seams[s], weight - share
    return seams


def _cut(offset: int, length: np.ndarray, seams: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Pieces `[n, 4]` of an endless text cut at the seams, one interval of it per row."""
    document = _take(length, seams[-1], random)
    first = np.concatenate([[0], np.cumsum(length[document])])
    cuts = np.union1d(seams, first[first < seams[-1]])
    begin, size = cuts[:-1], np.diff(cuts)
    index = np.searchsorted(first, begin, side="right") - 1
    row = np.searchsorted(seams, begin, side="right") - 1
    return np.stack([row, document[index] + offset, begin - first[index], size], 1)
