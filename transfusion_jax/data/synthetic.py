"""Documents from (seed, number) alone: the sizes of the paper's mixture, and no data behind them.

For the first hour on new hardware: captions of about twenty tokens with an image each, texts of about six hundred.
An image is a quarter of noise, four times, so that each of its patches says something of the others.
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

    @classmethod
    def of(cls, path: str, split: str, config: Config) -> SyntheticDocuments:
        """What `synthetic:KIND` stands for. Captions leave their image room; texts fill four rows at most.

        Raises:
            ConfigError: there is no such kind.
        """
        kind = path.partition(":")[2]
        one_of("the kind of data.sources.*.path synthetic:KIND", kind, KINDS)
        model, data = config.model, config.data
        beside_image = max(1, min(data.context_length - model.patches - 3, data.text_capacity - 2, 5 * CAPTION))
        longest = beside_image if kind == "pairs" else 4 * data.context_length
        return cls(kind, split, config.seed, model.vocabulary, model.latent_shape, longest, model.codebook)

    @property
    def hash(self) -> str:
        """Of everything that they depend on."""
        about = repr(self) + (f" codes {self.codebook}" if self.codebook else " quarters")
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

    def __getitem__(self, number: int) -> Document:
        text = Text(self.text(number, 0, int(self.text_lengths[number])))
        if self.kind == "text":
            return Document((text,))
        return Document((text, Image(self._image(self._random(2, number)))))

    def text(self, number: int, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` of a document's text."""
        uniform = self._random(1, number).random(int(self.text_lengths[number]))
        return (self.vocabulary * uniform**3).astype(np.int32)[begin:end]

    def _image(self, random: np.random.Generator) -> np.ndarray:
        if self.codebook:
            return random.integers(0, self.codebook, self.latent_shape[:2], np.int32)
        height, width, channels = self.latent_shape
        quarter = random.standard_normal((-(-height // 2), -(-width // 2), channels), np.float32)
        return np.tile(quarter, (2, 2, 1))[:height, :width]

    def _random(self, *entry: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, KINDS.index(self.kind), list(COUNT).index(self.split), *entry])
