"""Text to token ids and back, and the special tokens that stand beside a tokenizer's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from transfusion_jax.config import ConfigError
from transfusion_jax.data import marks as marking
from transfusion_jax.data.marks import KEPT, Marks
from transfusion_jax.data.tokenizer_files import REPLACEMENT, FileTokenizer, HuggingFace, open_tokenizer
from transfusion_jax.errors import whole_number
from transfusion_jax.storage.atomic import DamagedFile, write_whole
from transfusion_jax.storage.paths import Place, place


class Tokenizer(Protocol):
    """Any text tokenizer; ids run from 0 to `size` − 1."""

    @property
    def name(self) -> str:
        """`bytes`, or the name of its file in a prepared folder or a workdir."""
        ...

    @property
    def content(self) -> bytes:
        """Its file, empty where it has none."""
        ...

    @property
    def marks(self) -> Marks | None:
        """Its marks from the files beside it; None where its own apply."""
        ...

    @property
    def size(self) -> int:
        """Entries."""
        ...

    @property
    def bos(self) -> int | None:
        """Its own token for the beginning of a document."""
        ...

    @property
    def eos(self) -> int | None:
        """Its own token for the end of a document."""
        ...

    @property
    def stops(self) -> tuple[int, ...]:
        """Its further tokens that end generation."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Token ids, `[n]` int32, with no special tokens."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """Text of token ids; ids that are no valid text become the replacement character."""
        ...

    def bytes_of(self, token: int, begins: bool = False) -> int:
        """UTF-8 bytes that an id adds to a text, which it `begins` or not.

        A part of a character adds the bytes that it holds: wherever a text is cut, its ids add up to its size.
        """
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """One token per UTF-8 byte."""

    name: str = "bytes"
    content: bytes = b""
    marks: None = None
    size: int = 256
    bos: int | None = None
    eos: int | None = None
    stops: tuple[int, ...] = ()

    def encode(self, text: str) -> np.ndarray:
        """The bytes of the text."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of bytes."""
        tokens = np.asarray(tokens)
        return bytes(np.where(tokens < self.size, tokens, 0xFF).astype(np.uint8)).decode(
            errors="replace"
        )  # no text holds 0xFF

    def bytes_of(self, token: int, begins: bool = False) -> int:
        """One."""
        del token, begins
        return 1


@dataclass(frozen=True)
class Numbers:
    """Ids that stand for themselves: of synthetic data, which no text is behind."""

    size: int
    content: bytes = b""
    marks: Marks | None = None

    @property
    def name(self) -> str:
        """`numbers-SIZE`."""
        return f"numbers-{self.size}"

    @property
    def bos(self) -> int | None:
        """The model's that they are of."""
        return self.marks.bos if self.marks else None

    @property
    def eos(self) -> int | None:
        """The model's that they are of."""
        return self.marks.eos if self.marks else None

    @property
    def stops(self) -> tuple[int, ...]:
        """The model's that they are of."""
        return self.marks.stops if self.marks else ()

    def encode(self, text: str) -> np.ndarray:
        """The bytes of the text, modulo the size."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) % self.size

    def decode(self, tokens: np.ndarray) -> str:
        """The ids, written out."""
        return " ".join(str(token) if token < self.size else REPLACEMENT for token in np.asarray(tokens).tolist())

    def bytes_of(self, token: int, begins: bool = False) -> int:
        """The id's digits, and the space before it."""
        return len(str(token)) + (not begins)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens around texts and images: the tokenizer's own BOS and EOS, the others after its last."""

    bos: int
    eos: int
    boi: int
    eoi: int
    pad: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> SpecialTokens:
        """The special tokens beside a tokenizer."""
        own = cls.after(tokenizer.size)
        bos = own.bos if tokenizer.bos is None else tokenizer.bos
        return cls(bos, own.eos if tokenizer.eos is None else tokenizer.eos, own.boi, own.eoi, own.pad)

    @classmethod
    def after(cls, vocabulary: int) -> SpecialTokens:
        """The special tokens of a tokenizer with `vocabulary` entries and none of its own."""
        return cls(*range(vocabulary, vocabulary + 5))


def load_tokenizer(path: str | Place, log: Callable[[str], None] = lambda line: None) -> Tokenizer:
    """The tokenizer `bytes`, or that of a SentencePiece `.model` or a `tokenizer.json`, with its marks.

    They are those that the files beside it state; see `marks`. Without such files they are its own: those that a
    SentencePiece model holds, or the entries of the usual names in a `tokenizer.json`.

    Args:
        path: `bytes` or a file.
        log: told which marks there are, and by what.

    Raises:
        ConfigError: there is no such file, or it holds no tokenizer.
    """
    if str(path) == "bytes":
        return ByteTokenizer()
    path = place(path)
    own = open_tokenizer(path)
    marks = marking.kept_marks(path.parent) or marking.stated(path.parent, own.size, own.find, log)
    by = "the files beside it" if marks else "its usual names" if isinstance(own, HuggingFace) else "itself"
    found = own if marks in (None, Marks(own.bos, own.eos)) else replace(own, marks=marks)
    log(f"tokenizer {path}: {describe_marks(found)}, by {by}")
    return found


def describe_marks(tokenizer: Tokenizer) -> str:
    """How documents begin and end, in words."""
    own = SpecialTokens.of(tokenizer)

    def entry(number: int) -> str:
        if number >= tokenizer.size:
            return f"an entry of its own ({number})"
        text = tokenizer.token(number) if isinstance(tokenizer, FileTokenizer) else None
        return f"{number} ({text})" if text else str(number)

    also = "".join(f", generation also at {entry(stop)}" for stop in tokenizer.stops)
    return f"a document begins with {entry(own.bos)} and ends at {entry(own.eos)}{also}"


def hash_of(tokenizer: Tokenizer) -> str:
    """Equal hashes encode equally, and begin and end documents alike."""
    marks = tokenizer.marks.to_json().encode() if tokenizer.marks else b""
    return hashlib.sha256(tokenizer.name.encode() + tokenizer.content + marks).hexdigest()[:16]


def save_tokenizer(tokenizer: Tokenizer, folder: Place) -> None:
    """Writes the tokenizer's file, if it has one, and its marks, where they are not whole."""
    marks = tokenizer.marks.to_json().encode() if tokenizer.marks else b""
    for path, content in ((folder / tokenizer.name, tokenizer.content), (folder / KEPT, marks)):
        if content and not (path.is_file() and path.read_bytes() == content):
            write_whole(path, content)


def load_saved_tokenizer(
    folder: Place, name: str, expected: str | None = None, remedy: str = "copy it back from a backup"
) -> Tokenizer:
    """The tokenizer that `save_tokenizer` left in a folder.

    Args:
        folder: the folder.
        name: the tokenizer's.
        expected: its `hash_of`; None where a former version has not kept it.
        remedy: what to do where it is damaged, for the error.

    Raises:
        DamagedFile: the file is missing, or not what was written.
    """
    kind, _, size = name.partition("-")
    entries = whole_number(size)
    if kind == "numbers" and entries is not None:
        found: Tokenizer = Numbers(entries, marks=marking.kept_marks(folder))
    elif name == ByteTokenizer.name:
        found = ByteTokenizer()
    else:
        try:
            found = replace(open_tokenizer(folder / name), marks=marking.kept_marks(folder))
        except ConfigError as error:
            raise DamagedFile(f"{error}: {remedy}") from error
    if expected not in (None, hash_of(found)):
        raise DamagedFile(f"{folder / name} is damaged (its hash is not the recorded one): {remedy}")
    return found
