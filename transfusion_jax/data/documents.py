"""Documents: ordered lists of segments, each a text or an image, and collections of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from transfusion_jax.config import ModelConfig


@dataclass(frozen=True)
class Text:
    """A text as token ids `[n]`, with no special tokens."""

    tokens: np.ndarray
    loss: bool = True  # False: context only, as the instruction of an edit


@dataclass(frozen=True)
class Image:
    """An image as a normalised latent `[h, w, c]` float32, or as codes `[h, w]` int32."""

    latent: np.ndarray
    loss: bool = True  # False: context only, shown clean (t = 0), as the image to edit

    @property
    def hash(self) -> bytes:
        """What tells it from other images: of its shape and its values."""
        shape = str(self.latent.shape).encode()
        return hashlib.sha256(shape + self.latent.tobytes()).digest()


@dataclass(frozen=True)
class Document:
    """Segments in order."""

    segments: tuple[Text | Image, ...]

    @property
    def is_pair(self) -> bool:
        """Whether this is one caption and one image, both to be learnt, whose order is free."""
        both = len(self.segments) == 2 and {type(s) for s in self.segments} == {Text, Image}
        return both and all(s.loss for s in self.segments)

    @property
    def pair(self) -> tuple[Text, Image]:
        """Its caption and its image, of a document of these two, in whichever order.

        Raises:
            ValueError: it is of others.
        """
        (text,) = (s for s in self.segments if isinstance(s, Text))
        (image,) = (s for s in self.segments if isinstance(s, Image))
        return text, image

    @property
    def images(self) -> int:
        """Images in the document."""
        return sum(isinstance(s, Image) for s in self.segments)

    @property
    def area(self) -> int:
        """Latent places, height × width, of all its images."""
        return sum(int(np.prod(s.latent.shape[:2])) for s in self.segments if isinstance(s, Image))

    @property
    def text_length(self) -> int:
        """Text tokens in the document."""
        return sum(len(s.tokens) for s in self.segments if isinstance(s, Text))

    def length(self, model: ModelConfig) -> int:
        """Elements that the document takes: BOS, its text, and the patches of each image with the marks around.

        EOS is only ever a target, so it takes none.
        """
        return 1 + self.text_length + model.image_marks * self.images + self.area // model.patch_area


class Documents(Protocol):
    """Documents by number, whose sizes are known without reading them."""

    @property
    def text_lengths(self) -> np.ndarray:
        """Text tokens of each document, `[n]` integers; a memory-mapped file where there are many."""
        ...

    @property
    def images(self) -> np.ndarray:
        """Images of each document, `[n]` integers."""
        ...

    def areas(self, documents: np.ndarray | slice) -> np.ndarray:
        """Latent places, height × width, of all images of each of these documents, `[n]` int64."""
        ...

    @property
    def shapes(self) -> frozenset[tuple[int, int]]:
        """The latent heights and widths that its images have."""
        ...

    @property
    def hash(self) -> str:
        """A hash of every document, in order."""
        ...

    def __getitem__(self, number: int) -> Document:
        """The whole document."""
        ...

    def text(self, number: int, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` of a document without images; fewer where it ends before."""
        ...


def lengths_of(documents: Documents, chosen: np.ndarray | slice | int, model: ModelConfig) -> np.ndarray:
    """Elements that each of these documents takes, `[n]` int64; see `Document.length`."""
    chosen = slice(chosen, chosen + 1) if isinstance(chosen, int) else chosen
    texts, images = (column[chosen].astype(np.int64) for column in (documents.text_lengths, documents.images))
    return 1 + texts + model.image_marks * images + documents.areas(chosen) // model.patch_area


@dataclass(frozen=True)
class DocumentList:
    """`Documents` in memory."""

    documents: Sequence[Document]

    @cached_property
    def text_lengths(self) -> np.ndarray:
        """Text tokens of each document, `[n]`."""
        return np.array([d.text_length for d in self.documents], np.int64)

    @cached_property
    def images(self) -> np.ndarray:
        """Images of each document, `[n]`."""
        return np.array([d.images for d in self.documents], np.int64)

    def areas(self, documents: np.ndarray | slice) -> np.ndarray:
        """Latent places of all images of each of these documents, `[n]`."""
        return self._areas[documents]

    @cached_property
    def shapes(self) -> frozenset[tuple[int, int]]:
        """The latent heights and widths of its images."""
        return frozenset(s.latent.shape[:2] for d in self.documents for s in d.segments if isinstance(s, Image))

    @cached_property
    def hash(self) -> str:
        """A hash of every document, in order."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(f"{len(document.segments)};".encode())
            for segment in document.segments:
                array = segment.tokens if isinstance(segment, Text) else segment.latent
                digest.update(f"{type(segment).__name__}{segment.loss}{array.shape}{array.dtype}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def __getitem__(self, number: int) -> Document:
        return self.documents[number]

    def text(self, number: int, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` of a document without images."""
        texts = [s.tokens for s in self.documents[number].segments if isinstance(s, Text)]
        return np.concatenate(texts)[begin:end]

    @cached_property
    def _areas(self) -> np.ndarray:
        return np.array([d.area for d in self.documents], np.int64)


@dataclass(frozen=True)
class Source:
    """Documents of one origin."""

    name: str
    documents: Documents

    def __len__(self) -> int:
        return len(self.documents.images)

    def __iter__(self) -> Iterator[Document]:
        return (self.documents[number] for number in range(len(self)))

    @cached_property
    def pictured(self) -> bool:
        """Whether any of its documents holds images: only sources of plain texts are cut where a row ends."""
        return len(self) > 0 and bool(np.max(self.documents.images))


@dataclass(frozen=True)
class Corpus:
    """Sources side by side; a document's number counts through them in order."""

    sources: tuple[Source, ...]
    offsets: np.ndarray = field(init=False)  # [sources + 1]

    def __post_init__(self) -> None:
        sizes = [len(source) for source in self.sources]
        object.__setattr__(self, "offsets", np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, number: int) -> Document:
        source, place = self.find(number)
        return self.sources[source].documents[place]

    def find(self, number: int) -> tuple[int, int]:
        """The index of the source that holds a document, and the document's number there."""
        source = int(np.searchsorted(self.offsets, number, side="right")) - 1
        return source, number - int(self.offsets[source])

    @property
    def remote(self) -> bool:
        """Whether documents are read over a network, which is mostly waiting."""
        return any(getattr(source.documents, "remote", False) for source in self.sources)

    def pairs(self, count: int) -> list[Document]:
        """Captioned images from all over the corpus, each image once, `count` at most."""
        found: dict[bytes, Document] = {}
        pictured = [source for source in self.sources if source.pictured]
        for source in pictured:
            wanted = -(-count // len(pictured))
            places = np.unique(np.linspace(0, len(source) - 1, 8 * wanted).astype(int))  # some show the same image
            pairs = [d for d in map(source.documents.__getitem__, places.tolist()) if d.is_pair]
            images = {d.pair[1].hash: d for d in pairs}
            step = max(1, len(images) // wanted)
            found |= dict(list(images.items())[::step][:wanted])
        return list(found.values())[:count]

    @cached_property
    def hash(self) -> str:
        """A hash of every source's name and documents, in order; weights are not part of it."""
        names = "".join(f"{source.name}:{source.documents.hash};" for source in self.sources)
        return hashlib.sha256(names.encode()).hexdigest()[:16]
