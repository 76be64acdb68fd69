"""Sources as endless sequences of documents, known by their sizes alone."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np

from transfusion_jax.config import ConfigError
from transfusion_jax.data.documents import Corpus, Source
from transfusion_jax.data.packing import ELEMENTS, IMAGES
from transfusion_jax.data.shuffle import shuffled

SURVEYED = 1 << 20  # documents looked at together


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
    patches: int
    seed: tuple[int, int]

    @classmethod
    def of(cls, corpus: Corpus, name: str, patches: int, seed: int) -> Reader:
        """A source's order hangs on its name, not on its place among the others."""
        index = [source.name for source in corpus.sources].index(name)
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        return cls(corpus.sources[index], int(corpus.offsets[index]), patches, (seed, number))

    def owns(self, numbers: np.ndarray) -> np.ndarray:
        """Which of the corpus's documents are this source's, `[n]` bool."""
        return (self.offset <= numbers) & (numbers < self.offset + len(self.source))

    def sizes(self, documents: np.ndarray | slice) -> np.ndarray:
        """What documents take of a row, `[n, 3]`."""
        images = self.source.documents.images[documents].astype(np.int64)
        elements = 1 + self.source.documents.text_lengths[documents].astype(np.int64) + images * (self.patches + 2)
        return np.stack([elements, images, elements - images * (self.patches + 1)], 1)  # BOI has no text loss

    def take(self, begin: int, elements: float) -> tuple[np.ndarray, np.ndarray]:
        """So many documents from a place of the sequence on as bring these elements, `[n]`, and their sizes."""
        documents, sizes = np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
        while (total := int(sizes[:, ELEMENTS].sum())) < elements:
            mean = total / len(sizes) if len(sizes) else elements
            more = self._sequence(begin + len(sizes), math.ceil((elements - total) / mean * 1.01) + 16)
            documents, sizes = np.append(documents, more), np.concatenate([sizes, self.sizes(more)])
        count = enough(sizes, elements)
        return documents[:count], sizes[:count]

    def take_text(self, place: Place, elements: int) -> tuple[np.ndarray, np.ndarray, Place]:
        """The plain texts that the next elements stand in, their lengths, and the place after those elements."""
        documents, sizes = self.take(place.taken, place.offset + elements)
        ends = np.cumsum(sizes[:, ELEMENTS]) - place.offset
        whole = int(np.searchsorted(ends, elements, side="right"))
        read = ends[whole - 1] if whole else -place.offset
        return documents, sizes[:, ELEMENTS], Place(place.taken + whole, int(elements - read))

    def survey(self, capacity: np.ndarray) -> np.ndarray:
        """The sizes of all documents added up, `[3]`.

        Raises:
            ConfigError: there are none, or some do not fit a row, or they are of both kinds.
        """
        name, count = self.source.name, len(self.source)
        if not count:
            raise ConfigError(f"source {name!r} holds no documents")
        total, most, worst = np.zeros((3, 3), np.int64)
        pictured = 0
        for begin in range(0, count, SURVEYED):
            sizes = self.sizes(slice(begin, begin + SURVEYED))
            total += sizes.sum(0)
            pictured += int(np.count_nonzero(sizes[:, IMAGES]))
            worst = np.where(sizes.max(0) > most, sizes.argmax(0) + begin, worst)
            most = np.maximum(most, sizes.max(0))
        if pictured not in (0, count):
            raise ConfigError(f"source {name!r} mixes plain texts with documents that hold images: split it")
        units = ("elements", "images", "text elements")
        options = ("data.context_length", "data.max_images", "data.max_text")
        for column, (unit, option) in enumerate(zip(units, options, strict=True)):
            if pictured and most[column] > capacity[column]:
                raise ConfigError(
                    f"document {worst[column]} of source {name!r} takes {most[column]} {unit} and is not split: "
                    f"{option} is {capacity[column]}"
                )
        return total

    def _sequence(self, begin: int, count: int) -> np.ndarray:
        size = len(self.source)
        place = np.arange(begin, begin + count)
        turn = place // size
        return shuffled(place % size, size, self.seed, turn if turn[0] != turn[-1] else turn[0])


def enough(sizes: np.ndarray, elements: float) -> int:
    """How many of the first documents bring so many elements; all where they do not."""
    ends = np.cumsum(sizes[:, ELEMENTS])
    return min(int(np.searchsorted(ends, elements)) + 1, len(ends)) if elements > 0 else 0
