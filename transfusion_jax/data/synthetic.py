"""Documents from (seed, number) alone: the sizes of the paper's mixture, and no data behind them.

For the first hour on new hardware: captions of about twenty tokens with an image each, texts of about six hundred.
An image is a quarter of noise, four times, so that each of its patches says something of the others. Of a model of
images of any shape, proportions go from 1:2 to 2:1, evenly by their logarithm, at nearly the largest area.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from transfusion_jax.config import Config, one_of
from transfusion_jax.data.documents import Document, Image, Text

COUNT = {"train": 1 << 12, "held_out": 1 << 8}
CAPTION, TEXT = 20, 600  # tokens: the mean of captions, the median of texts
KINDS = ("pairs", "text")


@dataclass(frozen=True)
class SyntheticDocuments:
    """`Documents` of random tokens, a few frequent, and images of repeated noise, or of random codes."""

    kind: str  # "pairs" or "text"
    split: str
    seed: int
    vocabulary: int
    latent_shape: tuple[int, int, int]
    longest: int  # text, tokens
    codebook: int = field(default=0, repr=False)  # images are so many codes at random; 0: latents
    max_side: int = field(default=0, repr=False)  # see `ModelConfig.max_side`
    patch_size: int = field(default=1, repr=False)

    @classmethod
    def of(cls, path: str, split: str, config: Config) -> SyntheticDocuments:
        """What `synthetic:KIND` stands for. Captions leave their image room; texts fill four rows at most.

        Raises:
            ConfigError: there is no such kind.
        """
        kind = path.partition(":")[2]
        one_of("the kind of data.sources.*.path synthetic:KIND", kind, KINDS)
        model, data = config.model, config.data
        image = 1 + model.patches + model.image_marks
        beside_image = max(1, min(data.context_length - image, data.text_capacity - model.image_marks, 5 * CAPTION))
        longest = beside_image if kind == "pairs" else 4 * data.context_length
        sizes = longest, model.codebook, model.max_side, model.patch_size
        return cls(kind, split, config.seed, model.vocabulary, model.latent_shape, *sizes)

    @property
    def hash(self) -> str:
        """Of everything that they depend on."""
        about = repr(self) + (f" codes {self.codebook}" if self.codebook else " quarters")
        about += f" shapes {self.max_side} {self.patch_size}" if self.max_side else ""
        return hashlib.sha256(about.encode()).hexdigest()[:16]

    @cached_property
    def text_lengths(self) -> np.ndarray:
        """Text tokens of each document, `[n]`."""
        random, count = self._random(0), COUNT[self.split]
        if self.kind == "pairs":
            return np.minimum(random.geometric(1 / CAPTION, count), self.longest).astype(np.uint32)
        return np.clip(random.lognormal(np.log(TEXT), 1.0, count), 1, self.longest).astype(np.uint32)

    @cached_property
    def images(self) -> np.ndarray:
        """Images of each document, `[n]`."""
        return np.full(COUNT[self.split], self.kind == "pairs", np.uint16)

    @property
    def shapes(self) -> frozenset[tuple[int, int]]:
        """The latent heights and widths of its images."""
        return frozenset(map(tuple, self._shapes[self.images > 0].tolist()))

    def areas(self, documents: np.ndarray | slice) -> np.ndarray:
        """Latent places of all images of each of these documents, `[n]`."""
        return self.images[documents].astype(np.int64) * self._shapes[documents].prod(1)

    def __getitem__(self, number: int) -> Document:
        text = Text(self.text(number, 0, int(self.text_lengths[number])))
        if self.kind == "text":
            return Document((text,))
        return Document((text, Image(self._image(self._random(2, number), *self._shapes[number].tolist()))))

    def text(self, number: int, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` of a document's text."""
        uniform = self._random(1, number).random(int(self.text_lengths[number]))
        return (self.vocabulary * uniform**3).astype(np.int32)[begin:end]

    @cached_property
    def _shapes(self) -> np.ndarray:
        """Latent height and width of each document's image, `[n, 2]`."""
        height, width, _ = self.latent_shape
        if not self.max_side:
            return np.tile([height, width], (COUNT[self.split], 1))
        k, area = self.patch_size, height * width
        wider = 2.0 ** (self._random(3).uniform(-1, 1, COUNT[self.split]) / 2)  # than a square
        rows = np.clip(np.sqrt(area) / wider // k, 1, self.max_side // k).astype(np.int64)
        columns = np.clip(area // (rows * k * k), 1, np.minimum(np.rint(rows * wider**2), self.max_side // k))
        return np.stack([rows, columns.astype(np.int64)], 1) * k

    def _image(self, random: np.random.Generator, height: int, width: int) -> np.ndarray:
        if self.codebook:
            return random.integers(0, self.codebook, (height, width), np.int32)
        quarter = random.standard_normal((-(-height // 2), -(-width // 2), self.latent_shape[2]), np.float32)
        return np.tile(quarter, (2, 2, 1))[:height, :width]

    def _random(self, *entry: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, KINDS.index(self.kind), list(COUNT).index(self.split), *entry])
