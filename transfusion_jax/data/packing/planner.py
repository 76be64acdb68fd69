"""The planning of rows, block after block, from the sizes of documents alone.

Within a pass over a source, documents with images may stand in any order: a block of rows deals them out by length.
Where a pass ends, no document of the next one may come before the last of this one: such a block is filled row by
row, by `in_order`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from transfusion_jax.config import ConfigError
from transfusion_jax.data.packing.packing import ELEMENTS, IMAGES, OPTIONS, PATCHES, TEXT, UNITS, best_fit, deal
from transfusion_jax.data.packing.plan_store import Columns
from transfusion_jax.data.packing.queues import fill_in_order
from transfusion_jax.data.packing.sequences import Place, Reader, enough
from transfusion_jax.data.packing.shuffle import shuffled

BLOCK_ROWS = 8192
BACKLOG = 1.25  # what a block takes of a source that fell behind, in shares of the block
GROWTHS = 8  # the last block is planned again with more rows, so often at most, until everything fits
SHORTEST = 64  # rows of a block that is cut where a pass ends
STRETCHES = 64  # of a block's rows, each like the others in size
ROW, DOCUMENT, START, LENGTH = range(4)  # of a piece


@dataclass(frozen=True)
class Mixture:
    """What rows are planned from."""

    readers: Sequence[Reader]
    shares: np.ndarray  # [sources], of the elements; their sum is 1
    capacity: np.ndarray  # [columns], of a row
    seed: int
    in_order: bool = True  # no document is read again before all of its source have been; False: plans of version 2

    @cached_property
    def plain(self) -> np.ndarray:
        """Which sources are plain texts, `[sources]`."""
        return np.array([not reader.source.pictured for reader in self.readers])

    @property
    def pictured(self) -> list[int]:
        """The indices of the others."""
        return np.flatnonzero(~self.plain).tolist()

    @cached_property
    def totals(self) -> np.ndarray:
        """The elements of each source, `[sources]`.

        Raises:
            ConfigError: a row of the mixture would hold too many images or patches.
        """
        totals = np.array([reader.total for reader in self.readers])
        per_row = self.capacity[ELEMENTS] * (self.shares @ (totals / totals[:, [ELEMENTS]]))
        held = per_row * (1 if self.plain.any() else 1 - 1 / self._documents_of_row)  # whole ones leave room over
        for column in range(len(self.capacity)):
            if column in (IMAGES, PATCHES) and held[column] > self.capacity[column]:
                raise ConfigError(
                    f"a row of this mixture holds {per_row[column]:.1f} {UNITS[column]} on average and "
                    f"{OPTIONS[column]} is {self.capacity[column]}: raise it, or give plain text more weight"
                )
        return totals[:, ELEMENTS]

    @property
    def _documents_of_row(self) -> float:
        """How many documents fill a row on average."""
        of_elements = [reader.count / int(reader.total[ELEMENTS]) for reader in self.readers]
        return float(self.capacity[ELEMENTS] * (self.shares @ of_elements))


def plan_blocks(mixture: Mixture, places: Sequence[Place], least: int = 0) -> Iterator[tuple[Columns, float]]:
    """The columns of one block of rows after the other, and how much of the epoch has been read.

    The first block holds no rows: it is where the columns of offsets begin. The last takes all that was carried.

    Args:
        mixture: what to plan from.
        places: where to begin to read each source.
        least: rows to plan, even where fewer read every source.

    Raises:
        ConfigError: see `Mixture.totals`; or captions leave plain texts no room.
    """
    totals, context = mixture.totals, int(mixture.capacity[ELEMENTS])
    placed, number, ends = np.zeros_like(totals), 0, (0, 0, 0)
    columns, ends = _columns(np.zeros((0, 4), np.int64), 0, placed, places, ends)
    yield columns | {"row_offset": np.zeros(1, np.int64)}, 0.0
    while (more := bool(np.any(placed < totals) or ends[0] < least)) or any(len(p.carried) for p in places):
        if more:
            rows = min(max(_rows_missing(mixture, placed, ends[0]), least - ends[0]), BLOCK_ROWS)
            behind = mixture.shares * (placed.sum() + rows * context) - placed
            wanted = np.minimum(behind, BACKLOG * mixture.shares * rows * context)
        else:
            carried = sum(r.sizes(place.carried).sum(0) for r, place in zip(mixture.readers, places, strict=True))
            rows, wanted = min(_rows_for(carried, mixture), BLOCK_ROWS), np.full(len(totals), np.inf)
        block = _plan_block(mixture, rows, wanted, places, number, placed)
        for _ in range(GROWTHS):
            missing = np.any(placed + block.used + block.waiting < totals) or ends[0] + block.rows < least
            if missing or rows == BLOCK_ROWS or not block.left_over.any():
                break
            rows = min(rows + _rows_for(block.left_over, mixture), BLOCK_ROWS)
            block = _plan_block(mixture, rows, wanted, places, number, placed)
        places, placed, number = block.places, placed + block.used, number + 1
        if np.any(mixture.plain) and not placed[mixture.plain].any():
            raise ConfigError("captions use up data.max_text in every row and leave plain text no room: raise it")
        columns, ends = _columns(block.table, block.rows, block.used, places, ends)
        yield columns, float(min(np.min(placed / totals), ends[0] / max(least, 1), 1.0))


def _rows_for(sizes: np.ndarray, mixture: Mixture) -> int:
    """The fewest rows that could hold documents whose sizes add up so."""
    return int(np.max(-(-sizes // mixture.capacity)))


def _rows_missing(mixture: Mixture, placed: np.ndarray, rows: int) -> int:
    """How many more rows it takes to read every source, as far as can be told after some rows."""
    rate = mixture.shares * mixture.capacity[ELEMENTS]
    capped = np.minimum(rate, mixture.capacity[TEXT])
    seen = np.where(placed > 0, np.minimum(capped, placed / max(rows, 1)), capped)
    missing = np.maximum(mixture.totals - placed, 0)
    return max(1, math.ceil(np.max(missing / np.where(mixture.plain, seen, rate))))


def _columns(
    table: np.ndarray, rows: int, used: np.ndarray, places: Sequence[Place], ends: tuple[int, int, int]
) -> tuple[Columns, tuple[int, int, int]]:
    """The columns of a block, and the rows, pieces and carried documents up to its end."""
    done, pieces, carried = ends
    carried_ends = carried + np.cumsum([len(place.carried) for place in places])
    row_ends = pieces + np.cumsum(np.bincount(table[:, ROW], minlength=rows))
    columns = {
        "piece_document": table[:, DOCUMENT],
        "piece_start": table[:, START],
        "piece_length": table[:, LENGTH].astype(np.int32),
        "row_offset": row_ends.astype(np.int64),
        "block_row": np.array([done + rows]),
        "block_elements": used[None],
        "block_place": np.array([[(p.taken, p.offset, e) for p, e in zip(places, carried_ends, strict=True)]]),
        "carried": np.concatenate([place.carried for place in places]),
    }
    return columns, (done + rows, pieces + len(table), int(carried_ends[-1]))


@dataclass(frozen=True)
class _Pool:
    """Documents with images that a block is to place."""

    source: np.ndarray  # [n]
    document: np.ndarray  # [n], the source's number
    sizes: np.ndarray  # [n, columns]
    fresh: np.ndarray  # [n] bool, not carried from the block before


@dataclass(frozen=True)
class _Block:
    """What was planned at once."""

    rows: int  # as many as were asked for; where no text fills them, as many as the documents take
    table: np.ndarray  # [pieces, 4], in row order
    places: list[Place]  # after it
    used: np.ndarray  # [sources], elements in the rows
    waiting: np.ndarray  # [sources], elements of what was to be placed and did not fit
    left_over: np.ndarray  # [columns], their sizes added up


def _plan_block(
    mixture: Mixture, rows: int, wanted: np.ndarray, places: Sequence[Place], number: int, placed: np.ndarray
) -> _Block:
    """Fills rows.

    Args:
        mixture: what to plan from.
        rows: in this block.
        wanted: elements to place of each source with images; without end: what was carried, and nothing else.
        places: where to read on.
        number: of the block.
        placed: elements of each source in the blocks before, `[sources]`.
    """
    pool, after = _gather(mixture, wanted, places)
    ends = [s for s in mixture.pictured if _passes_end(mixture.readers[s], places[s], after[s])]
    if not (ends and mixture.in_order):
        return _deal_out_by_length(mixture, rows, pool, after, number)
    if not mixture.plain.any():  # the best fit of many rows is worth a block of its own
        left = np.array([_left_of_pass(mixture.readers[s], places[s]) for s in ends])
        part = np.min(left / wanted[ends])
        if (fewer := math.ceil(part * rows)) >= SHORTEST:
            shorter = part * wanted
            shorter[ends] = np.minimum(shorter[ends], left)  # as the quotient is rounded
            return _plan_block(mixture, fewer, shorter, places, number, placed)
    return _fill_in_order(mixture, rows, places, number, placed)


def _passes_end(reader: Reader, before: Place, after: Place) -> bool:
    """Whether documents of more than one pass are read between two places."""
    return after.taken > before.taken and reader.pass_of(before) != (after.taken - 1) // reader.count


def _left_of_pass(reader: Reader, place: Place) -> int:
    """Elements that are left to place of the pass of a place, of a source with images."""
    fresh = (reader.pass_of(place) + 1) * reader.count - place.taken
    sizes = [reader.sizes(place.carried), reader.following(place.taken, fresh)[1]]
    return int(np.concatenate(sizes)[:, ELEMENTS].sum())


def _fill_in_order(mixture: Mixture, rows: int, places: Sequence[Place], number: int, placed: np.ndarray) -> _Block:
    pictured = mixture.pictured
    filled = fill_in_order(
        [mixture.readers[s] for s in pictured],
        [places[s] for s in pictured],
        rows,
        mixture.capacity,
        mixture.shares[pictured],
        placed[pictured],
        int(placed.sum()),
        whole=not mixture.plain.any(),
    )
    after, used = list(places), np.zeros_like(placed)
    for s, place, elements in zip(pictured, filled.places, filled.elements, strict=True):
        after[s], used[s] = place, elements
    left = mixture.capacity - filled.used
    return _with_text(
        mixture,
        rows,
        left,
        filled.table,
        after,
        used,
        number,
        np.zeros_like(placed),
        np.zeros_like(mixture.capacity),
    )


def _deal_out_by_length(mixture: Mixture, rows: int, pool: _Pool, places: list[Place], number: int) -> _Block:
    seeds = [(mixture.seed, number, use) for use in (1, 2)]
    if mixture.plain.any():
        left = np.tile(mixture.capacity, (rows, 1))
        row_of = _deal_out(pool, left, mixture.pictured)
        pictured = pool.sizes[:, IMAGES] > 0  # in plans of version 2, what holds no image waits
        rest = np.flatnonzero((row_of < 0) & (mixture.in_order | pictured))
        row_of[rest] = best_fit(pool.sizes[rest], left)
    else:
        left = np.tile(mixture.capacity, (2 * rows + 1, 1))  # the best fit leaves no two rows half empty
        row_of = np.empty(len(pool.source), np.int64)
        mixed = shuffled(np.arange(len(row_of)), len(row_of), seeds[0])  # those of one size are of all sources
        row_of[mixed] = best_fit(pool.sizes[mixed], left)
        rows = int(row_of.max()) + 1
        left = left[:rows]
    order = _spread(rows, seeds[1])
    left[order] = left.copy()
    offsets = np.array([reader.offset for reader in mixture.readers])
    used, waiting = (_elements(pool, chosen, len(places)) for chosen in (row_of >= 0, row_of < 0))
    on = np.flatnonzero(row_of >= 0)
    document = pool.document[on] + offsets[pool.source[on]]
    table = np.stack([order[row_of[on]], document, np.zeros_like(on), pool.sizes[on, ELEMENTS]], 1)
    for s in mixture.pictured:
        out = pool.document[(pool.source == s) & (row_of < 0)]
        places[s] = replace(places[s], carried=np.append(out, places[s].carried))
    return _with_text(mixture, rows, left, table, places, used, number, waiting, pool.sizes[row_of < 0].sum(0))


def _with_text(
    mixture: Mixture,
    rows: int,
    left: np.ndarray,
    table: np.ndarray,
    places: list[Place],
    used: np.ndarray,
    number: int,
    waiting: np.ndarray,
    left_over: np.ndarray,
) -> _Block:
    """The block of rows with images whose room that is `left`, `[rows, columns]`, plain texts fill."""
    tables = [table]
    seams = _split_room(np.minimum(left[:, ELEMENTS], left[:, TEXT]), np.where(mixture.plain, mixture.shares, 0))
    for s in np.flatnonzero(mixture.plain).tolist():
        begin = places[s].offset
        texts, lengths, places[s] = mixture.readers[s].take_text(places[s], int(seams[s, -1]))
        tables.append(_cut(texts + mixture.readers[s].offset, lengths, begin, seams[s]))
        used[s] = seams[s, -1]
    table = np.concatenate(tables)
    table = table[shuffled(np.arange(len(table)), len(table), (mixture.seed, number, 3))]
    table = table[np.argsort(table[:, ROW].astype(np.uint16), kind="stable")]
    return _Block(rows, table, places, used, waiting, left_over)


def _gather(mixture: Mixture, wanted: np.ndarray, places: Sequence[Place]) -> tuple[_Pool, list[Place]]:
    """What was carried comes first; the places keep what is not wanted yet."""
    after, parts = list(places), []
    for s in mixture.pictured:
        reader, place = mixture.readers[s], places[s]
        old = reader.sizes(place.carried)
        count = enough(old, wanted[s])
        lacking = wanted[s] - old[:, ELEMENTS].sum()
        new, new_sizes = reader.take(place.taken, lacking if lacking < math.inf else 0.0)
        after[s] = Place(place.taken + len(new), 0, place.carried[count:])
        total = count + len(new)
        documents, sizes = np.append(place.carried[:count], new), np.concatenate([old[:count], new_sizes])
        parts.append((np.full(total, s), documents, sizes, np.arange(total) >= count))
    none = (
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        np.zeros((0, len(mixture.capacity)), np.int64),
        np.zeros(0, bool),
    )
    return _Pool(*(np.concatenate(columns) for columns in zip(none, *parts, strict=True))), after


def _deal_out(pool: _Pool, left: np.ndarray, sources: list[int]) -> np.ndarray:
    """A row for each document, or −1, so that rows get equal shares of each source.

    What the block before carried is dealt first, to empty rows, so that nothing waits for long; then the sources,
    that of the longest document first.
    """
    row_of = np.full(len(pool.source), -1)
    load = {s: np.zeros(len(left), np.int64) for s in sources}
    carried, fresh = (
        [(s, np.flatnonzero((pool.source == s) & (pool.fresh == f))) for s in sources] for f in (0, 1)
    )
    fresh.sort(key=lambda part: -pool.sizes[part[1], ELEMENTS].max(initial=0))
    for s, documents in carried + fresh:
        row_of[documents] = deal(pool.sizes[documents], left, load[s])
    return row_of


def _spread(rows: int, seed: tuple[int, ...]) -> np.ndarray:
    """A random place for each row, `[rows]`, such that neighbours, which were packed alike, end up far apart.

    Rows are cut into stretches; in the new order, each stretch in turn gives one of its rows.
    """
    stretch, member = np.divmod(np.arange(rows), -(-rows // STRETCHES))
    turn = shuffled(member, int(member.max()) + 1, seed, stretch)
    key = turn * STRETCHES + shuffled(stretch, STRETCHES, seed, turn)
    return np.argsort(np.argsort(key))


def _elements(pool: _Pool, chosen: np.ndarray, sources: int) -> np.ndarray:
    """Elements of the chosen documents, `[sources]`."""
    return np.bincount(pool.source[chosen], pool.sizes[chosen, ELEMENTS], sources).astype(np.int64)


def _split_room(room: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """For each source, where its text ends in each row when all its text is laid end to end, `[sources, rows + 1]`.

    The running total is split, not each row's room, so that rounding never adds up; one source after the other
    is split off, so that no row's part is ever negative.
    """
    total = np.concatenate([[0], np.cumsum(room)])
    weight = shares.sum()
    seams = np.zeros((len(shares), len(total)), np.int64)
    for s in np.flatnonzero(shares):
        seams[s] = np.rint(total * min(1.0, shares[s] / weight))
        total, weight = total - seams[s], weight - shares[s]
    return seams


def _cut(document: np.ndarray, length: np.ndarray, offset: int, seams: np.ndarray) -> np.ndarray:
    """Pieces `[n, 4]` of texts laid end to end and cut at the seams; `offset` elements of the first are gone."""
    first = np.concatenate([[0], np.cumsum(length)]) - offset
    cuts = np.unique(np.concatenate([seams, first[(first > 0) & (first < seams[-1])]]))
    begin, size = cuts[:-1], np.diff(cuts)
    index = np.searchsorted(first, begin, side="right") - 1
    row = np.searchsorted(seams, begin, side="right") - 1
    return np.stack([row, document[index], begin - first[index], size], 1)
