"""Documents: ordered lists of segments, each a text or an image, and collections of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Text:
    """A text as token ids `[n]`, with no special tokens."""

    tokens: np.ndarray


@dataclass(frozen=True)
class Image:
    """An image as a normalised latent `[h, w, c]` float32."""

    latent: np.ndarray


@dataclass(frozen=True)
class Document:
    """Segments in order."""

    segments: tuple[Text | Image, ...]

    @property
    def is_pair(self) -> bool:
        """Whether this is one caption and one image, whose order is free."""
        return {type(s) for s in self.segments} == {Text, Image} and len(self.segments) == 2

    @property
    def images(self) -> int:
        """Images in the document."""
        return sum(isinstance(s, Image) for s in self.segments)

    @property
    def text_length(self) -> int:
        """Text tokens in the document."""
        return sum(len(s.tokens) for s in self.segments if isinstance(s, Text))

    def length(self, patches: int) -> int:
        """Elements that the document takes: BOS, its text, and each image with BOI and EOI.

        EOS is only ever a target, so it takes none.
        """
        return 1 + self.text_length + self.images * (patches + 2)


@dataclass(frozen=True)
class Source:
    """Documents of one origin, in memory."""

    name: str
    weight: float  # share of the training elements, relative to the other sources
    documents: Sequence[Document]


@dataclass(frozen=True)
class Corpus:
    """Sources side by side; a document's number counts through them in order."""

    sources: tuple[Source, ...]
    offsets: np.ndarray = field(init=False)  # [sources + 1]

    def __post_init__(self) -> None:
        sizes = [len(source.documents) for source in self.sources]
        object.__setattr__(self, "offsets", np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, number: int) -> Document:
        source = self.source_of(number)
        return self.sources[source].documents[number - int(self.offsets[source])]

    def source_of(self, number: int) -> int:
        """The index of the source that holds a document."""
        return int(np.searchsorted(self.offsets, number, side="right")) - 1

    @cached_property
    def hash(self) -> str:
        """A hash of every source's name and documents; weights and order of reading are not part of it."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(f"{source.name}:{len(source.documents)};".encode())
            for document in source.documents:
                digest.update(f"{len(document.segments)};".encode())
                for segment in document.segments:
                    array = segment.tokens if isinstance(segment, Text) else segment.latent
                    digest.update(f"{type(segment).__name__}{array.shape}{array.dtype}".encode())
                    digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]
