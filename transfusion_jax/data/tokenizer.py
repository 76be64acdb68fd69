"""Text to token ids and back, and the special tokens that stand beside a tokenizer's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from transfusion_jax.config import ConfigError


class Tokenizer(Protocol):
    """Any text tokenizer; ids run from 0 to `size` − 1."""

    @property
    def name(self) -> str:
        """What a config calls it."""
        ...

    @property
    def size(self) -> int:
        """Entries."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Token ids, `[n]` int32, with no special tokens."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """Text of token ids; ids that are no valid text become the replacement character."""
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """One token per UTF-8 byte."""

    name: str = "bytes"
    size: int = 256

    def encode(self, text: str) -> np.ndarray:
        """The bytes of the text."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of bytes."""
        tokens = np.asarray(tokens)
        return bytes(np.where(tokens < self.size, tokens, 0xFF).astype(np.uint8)).decode(
            errors="replace"
        )  # no text holds 0xFF


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens around texts and images; they follow the tokenizer's own."""

    bos: int
    eos: int
    boi: int
    eoi: int
    pad: int

    @classmethod
    def after(cls, vocabulary: int) -> SpecialTokens:
        """The special tokens of a tokenizer with `vocabulary` entries."""
        return cls(*range(vocabulary, vocabulary + 5))


def load(name: str) -> Tokenizer:
    """The tokenizer that a config names.

    Raises:
        ConfigError: there is none of that name in this version.
    """
    if name != "bytes":
        raise ConfigError(f"tokenizer {name!r} is not available in this version: use 'bytes'")
    return ByteTokenizer()
