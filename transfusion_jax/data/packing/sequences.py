"""Sources as endless sequences of documents, known by their sizes alone."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace

import numpy as np

from transfusion_jax.config import ConfigError
from transfusion_jax.data.documents import Corpus, Source
from transfusion_jax.data.packing.packing import ELEMENTS, OPTIONS, UNITS, Room
from transfusion_jax.data.packing.shuffle import shuffled

SURVEYED = 1 << 19  # documents looked at together
MOST_LEFT_OUT = 0.01  # of a source's documents; where more fit no row, the config is at fault


@dataclass(frozen=True)
class Place:
    """How far the endless sequence of a source's documents has been read."""

    taken: int = 0  # documents of the sequence
    offset: int = 0  # elements read of the next one, a plain text
    carried: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [n], taken, and in no row yet


@dataclass(frozen=True)
class Reader:
    """The documents of one source as an endless sequence: pass after pass, each in an order of its own."""

    source: Source
    offset: int  # the corpus's number of its first document
    room: Room  # of a row
    seed: tuple[int, int]
    left_out: np.ndarray = field(
        default_factory=lambda: np.zeros(0, np.int64)
    )  # [n], the source's numbers, in order
    total: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # sizes of the others, `[columns]`

    @classmethod
    def of(cls, corpus: Corpus, name: str, room: Room, seed: int) -> Reader:
        """A source's order hangs on its name, not on its place among the others.

        Documents that are not split and fit no row are left out.

        Raises:
            ConfigError: there are no documents, or more than a few fit no row.
        """
        index = [source.name for source in corpus.sources].index(name)
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        return cls(corpus.sources[index], int(corpus.offsets[index]), room, (seed, number))._survey()

    @property
    def count(self) -> int:
        """Documents of one pass."""
        return len(self.source) - len(self.left_out)

    def pass_of(self, place: Place) -> int:
        """The pass that the next document at a place belongs to: what was carried is of the last one's."""
        return (place.taken - bool(len(place.carried))) // self.count

    def owns(self, numbers: np.ndarray) -> np.ndarray:
        """Which of the corpus's documents are this source's, `[n]` bool."""
        return (self.offset <= numbers) & (numbers < self.offset + len(self.source))

    def sizes(self, documents: np.ndarray | slice) -> np.ndarray:
        """What documents take of a row, `[n, columns]`."""
        return self.room.sizes(self.source.documents, documents)

    def following(self, begin: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """A number of documents from a place of the sequence on, `[n]`, and their sizes."""
        documents = self._sequence(begin, count)
        return documents, self.sizes(documents)

    def take(self, begin: int, elements: float) -> tuple[np.ndarray, np.ndarray]:
        """So many documents from a place of the sequence on as bring these elements, `[n]`, and their sizes."""
        documents, sizes = np.zeros(0, np.int64), np.zeros((0, len(self.room.capacity)), np.int64)
        while (total := int(sizes[:, ELEMENTS].sum())) < elements:
            mean = total / len(sizes) if len(sizes) else elements
            more, their = self.following(begin + len(sizes), math.ceil((elements - total) / mean * 1.01) + 16)
            documents, sizes = np.append(documents, more), np.concatenate([sizes, their])
        count = enough(sizes, elements)
        return documents[:count], sizes[:count]

    def take_text(self, place: Place, elements: int) -> tuple[np.ndarray, np.ndarray, Place]:
        """The plain texts that the next elements stand in, their lengths, and the place after those elements."""
        documents, sizes = self.take(place.taken, place.offset + elements)
        ends = np.cumsum(sizes[:, ELEMENTS]) - place.offset
        whole = int(np.searchsorted(ends, elements, side="right"))
        read = ends[whole - 1] if whole else -place.offset
        return documents, sizes[:, ELEMENTS], Place(place.taken + whole, int(elements - read))

    def rewound(self, begin: Place, end: Place, read: np.ndarray) -> Place:
        """The place between two others, of a source with images, at which so many documents had been placed.

        Args:
            begin: the place before them.
            end: a later one; each pass is read up before the next begins.
            read: the documents that were placed since `begin`, `[n]`, in any order.
        """
        old, fresh = len(begin.carried), end.taken - begin.taken
        documents = np.append(begin.carried, self._sequence(begin.taken, fresh))
        passes = np.append(
            np.full(old, self.pass_of(begin)), np.arange(begin.taken, begin.taken + fresh) // self.count
        )
        if len(read) == len(documents):
            return end
        current = np.flatnonzero(passes == passes[len(read)])  # the passes before are read up
        mine = documents[current]
        placed = _times(read, mine) > _times(documents[: current[0]], mine)
        last = int(np.max(current[placed], initial=-1)) + 1
        upto = max(last, old, int(current[0]))
        waiting = current[~placed]
        return Place(begin.taken + upto - old, 0, documents[waiting[waiting < upto]])

    def _survey(self) -> Reader:
        name, count, capacity = self.source.name, len(self.source), self.room.capacity
        if not count:
            raise ConfigError(f"source {name!r} holds no documents")
        total, left_out = np.zeros(len(capacity), np.int64), []
        for begin in range(0, count, SURVEYED):
            sizes = self.sizes(slice(begin, begin + SURVEYED))
            fits = np.all(sizes <= capacity, axis=1) if self.source.pictured else np.ones(len(sizes), bool)
            total += sizes[fits].sum(0)
            left_out.append(np.flatnonzero(~fits) + begin)
        numbers = np.concatenate(left_out)
        if len(numbers) > MOST_LEFT_OUT * count:
            size = self.sizes(numbers[:1])[0]
            column = int(np.flatnonzero(size > capacity)[0])
            raise ConfigError(
                f"document {numbers[0]} of source {name!r} takes {size[column]} {UNITS[column]} and is not split: "
                f"{OPTIONS[column]} is {capacity[column]}, and {len(numbers):,} of {count:,} documents fit no row"
            )
        return replace(self, left_out=numbers, total=total)

    def _sequence(self, begin: int, count: int) -> np.ndarray:
        if not count:
            return np.zeros(0, np.int64)
        place = np.arange(begin, begin + count)
        turn = place // self.count
        index = shuffled(place % self.count, self.count, self.seed, turn if turn[0] != turn[-1] else turn[0])
        before = self.left_out - np.arange(len(self.left_out))
        return index + np.searchsorted(before, index, side="right")


def _times(among: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """How often each document occurs among others, `[n]`."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, documents, "right") - np.searchsorted(ordered, documents, "left")


def enough(sizes: np.ndarray, elements: float) -> int:
    """How many of the first documents bring so many elements; all where they do not."""
    ends = np.cumsum(sizes[:, ELEMENTS])
    return min(int(np.searchsorted(ends, elements)) + 1, len(ends)) if elements > 0 else 0
