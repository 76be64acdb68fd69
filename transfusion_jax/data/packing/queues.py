"""Rows filled one after the other with documents in passes: each pass is finished before the next begins.

A source's documents queue in the order of its endless sequence. A row takes the first of a queue or, where that
does not fit, the largest near the front that does, but never one of the next pass while one of this pass waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import le, sub

import numpy as np

from transfusion_jax.data.packing.packing import ELEMENTS, TEXT
from transfusion_jax.data.packing.sequences import Place, Reader

NEAR = 64  # documents at the front of a queue that a row chooses from
FETCHED = 1024  # documents that are added to a queue together, at most

Size = tuple[int, ...]  # the columns of `Room`


@dataclass(frozen=True)
class Filled:
    """Rows with documents in them."""

    table: np.ndarray  # [pieces, 4]: row, the corpus's number of the document, 0, its elements
    used: np.ndarray  # [rows, columns], what the documents take
    elements: list[int]  # of each source
    places: list[Place]  # of each source, after these rows


class _Queue:
    """The documents of one source that have not been placed, in order."""

    def __init__(self, reader: Reader, place: Place) -> None:
        self._reader, self._begin = reader, place
        self._carried = len(place.carried)
        self.documents: list[int] = place.carried.tolist()
        self.sizes: list[Size] = list(map(tuple, reader.sizes(place.carried).tolist()))
        self._near: list[int] = []  # that wait, all of one pass
        self._next = 0  # the first behind them
        self._pass_end = (reader.pass_of(place) + 1) * reader.count - place.taken + self._carried
        self._placed = 0  # the one behind the last that was placed
        self._fill()

    @property
    def first(self) -> int:
        """Elements of the document that has waited longest."""
        return self.sizes[self._near[0]][ELEMENTS]

    def choose(self, room: Size) -> int | None:
        """The next document that fits the room; None where none near the front fits."""
        chosen, most = None, 0
        for index in self._near:
            size = self.sizes[index]
            if most < size[ELEMENTS] <= room[ELEMENTS] and all(map(le, size, room)):
                if index == self._near[0]:
                    return index
                chosen, most = index, size[ELEMENTS]
        return chosen

    def fitting(self, room: Size) -> list[int]:
        """The documents near the front that fit the room."""
        return [i for i in self._near if all(map(le, self.sizes[i], room))]

    def remove(self, index: int) -> None:
        """Removes a document that has been placed."""
        self._near.remove(index)
        self._placed = max(self._placed, index + 1)
        self._fill()

    def place(self) -> Place:
        """How far the source has been read: documents that wait before the last placed one are carried."""
        waiting = [*self._near, *range(self._next, self._carried)]
        end = max(self._placed, self._carried)
        carried = [self.documents[i] for i in waiting if i < end]
        return Place(self._begin.taken + end - self._carried, 0, np.array(carried, np.int64))

    def _fill(self) -> None:
        if not self._near and self._next == self._pass_end:
            self._pass_end += self._reader.count
        end = min(self._next + NEAR - len(self._near), self._pass_end)
        while len(self.documents) < end:
            begin = self._begin.taken + len(self.documents) - self._carried
            documents, sizes = self._reader.following(begin, min(max(NEAR, len(self.documents)), FETCHED))
            self.documents += documents.tolist()
            self.sizes += map(tuple, sizes.tolist())
        self._near += range(self._next, end)
        self._next = end


def fill_in_order(
    readers: Sequence[Reader],
    places: Sequence[Place],
    rows: int,
    capacity: np.ndarray,
    shares: np.ndarray,
    placed: np.ndarray,
    total: int,
    whole: bool,
) -> Filled:
    """Fills rows with documents of sources with images: next that of the source which is furthest behind its share.

    Args:
        readers: the sources.
        places: where to read each of them on.
        rows: to be filled.
        capacity: of a row, `[columns]`.
        shares: of the elements, `[sources]`.
        placed: elements of each source in the rows before, `[sources]`.
        total: elements in the rows before, of all sources, those of plain texts with them.
        whole: fill rows as far as they go; otherwise plain texts fill what the shares leave.
    """
    queues = [_Queue(reader, place) for reader, place in zip(readers, places, strict=True)]
    have, limits, context = placed.tolist(), tuple(capacity.tolist()), int(capacity[ELEMENTS])
    pieces: list[tuple[int, int, int, int]] = []
    used = np.zeros((rows, len(capacity)), np.int64)
    few = 2 * max(reader.total[ELEMENTS] / reader.count for reader in readers) if whole else 0
    for row in range(rows):
        room = limits
        behind = [share * (total + context) - mine for share, mine in zip(shares.tolist(), have, strict=True)]
        waiting = list(range(len(queues)))
        while waiting:
            source = max(waiting, key=behind.__getitem__)
            queue = queues[source]
            if room[ELEMENTS] < few:
                closing = _closing(queues, room)
                if closing is None:
                    break
                source, index = closing
            else:
                chosen = queue.choose(room) if whole or behind[source] >= queue.first / 2 else None
                if chosen is None:
                    waiting.remove(source)
                    continue
                index = chosen
            queue = queues[source]
            size = queue.sizes[index]
            pieces.append((row, queue.documents[index] + readers[source].offset, 0, size[ELEMENTS]))
            queue.remove(index)
            room = tuple(map(sub, room, size))
            behind[source] -= size[ELEMENTS]
            have[source] += size[ELEMENTS]
        used[row] = [limit - r for limit, r in zip(limits, room, strict=True)]
        total += context - (room[ELEMENTS] if whole else max(room[ELEMENTS] - room[TEXT], 0))
    elements = [mine - before for mine, before in zip(have, placed.tolist(), strict=True)]
    table = np.array(pieces, np.int64).reshape(-1, 4)
    return Filled(table, used, elements, [queue.place() for queue in queues])


def _closing(queues: Sequence[_Queue], room: Size) -> tuple[int, int] | None:
    """The queue and document that, alone or with one more, fills a small room best; None where none fits."""
    found = [(queue.sizes[i][ELEMENTS], s, i) for s, queue in enumerate(queues) for i in queue.fitting(room)]
    if not found:
        return None
    found.sort()
    sizes = np.array([0] + [size for size, _, _ in found])
    index = np.arange(1, len(sizes))
    partner = np.searchsorted(sizes, room[ELEMENTS] - sizes[1:], side="right") - 1
    partner -= partner == index  # a document is placed once
    best = int(np.argmax(sizes[1:] + sizes[partner]))
    return found[best][1:]
