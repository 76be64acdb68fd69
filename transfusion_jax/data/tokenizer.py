"""Text to token ids and back, and the special tokens that stand beside a tokenizer's own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from transfusion_jax.config import ConfigError, require
from transfusion_jax.data import marks as marking
from transfusion_jax.data.marks import KEPT, Marks
from transfusion_jax.storage.atomic import DamagedFile, write_whole
from transfusion_jax.storage.paths import Place, place

BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]")
EOS_NAMES = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[EOS]")
REPLACEMENT = "\ufffd"
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")  # how vocabularies without byte-level tokens name a byte


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
class SentencePiece:
    """A SentencePiece model, such as Llama 2's `tokenizer.model`."""

    content: bytes
    name: str = "tokenizer.model"
    marks: Marks | None = None

    @cached_property
    def _model(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.content)

    @property
    def size(self) -> int:
        """Entries; those of its model where that has more."""
        return max(self._entries, self.marks.size if self.marks else 0)

    @property
    def bos(self) -> int | None:
        """By the files beside it, or the model's `<s>`."""
        return self.marks.bos if self.marks else _known(self._model.bos_id())

    @property
    def eos(self) -> int | None:
        """By the files beside it, or the model's `</s>`."""
        return self.marks.eos if self.marks else _known(self._model.eos_id())

    @property
    def stops(self) -> tuple[int, ...]:
        """By the files beside it."""
        return self.marks.stops if self.marks else ()

    @property
    def _entries(self) -> int:
        return int(self._model.vocab_size())

    def find(self, text: str) -> int | None:
        """The entry of a token's text."""
        entry = int(self._model.piece_to_id(text))
        return entry if self._model.id_to_piece(entry) == text else None

    def token(self, entry: int) -> str | None:
        """The text of an entry, as `find` takes it."""
        return str(self._model.id_to_piece(entry)) if entry < self._entries else None

    def encode(self, text: str) -> np.ndarray:
        """The model's ids; control tokens written out in the text are plain text."""
        return np.array(self._model.encode(text), np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of ids."""
        return _decode_known(tokens, self._entries, self._model.decode)

    def bytes_of(self, token: int, begins: bool = False) -> int:
        """The bytes that decoding adds: a text's first piece loses the space that the model puts before texts."""
        before = [] if begins else self._model.encode("a")
        return _bytes_added(token, before, self._model.decode, self._model.id_to_piece(token))

    def __reduce__(self) -> tuple:
        return SentencePiece, (self.content, self.name, self.marks)


@dataclass(frozen=True)
class HuggingFace:
    """A tokenizer of Hugging Face's `tokenizers` library, as its `tokenizer.json` describes it."""

    content: bytes
    name: str = "tokenizer.json"
    marks: Marks | None = None

    @cached_property
    def _model(self) -> Any:
        from tokenizers import Tokenizer as Model

        model = Model.from_str(self.content.decode())
        model.encode_special_tokens = True  # "<s>" in a text is a text
        model.no_truncation()
        model.no_padding()
        return model

    @property
    def size(self) -> int:
        """Entries, added tokens among them; those of its model where that has more."""
        return max(self._entries, self.marks.size if self.marks else 0)

    @property
    def bos(self) -> int | None:
        """By the files beside it, or the first that it has of the usual names."""
        return self.marks.bos if self.marks else self._first(BOS_NAMES)

    @property
    def eos(self) -> int | None:
        """By the files beside it, or the first that it has of the usual names."""
        return self.marks.eos if self.marks else self._first(EOS_NAMES)

    @property
    def stops(self) -> tuple[int, ...]:
        """By the files beside it."""
        return self.marks.stops if self.marks else ()

    @cached_property
    def _entries(self) -> int:
        return int(max(self._model.get_vocab().values())) + 1

    def find(self, text: str) -> int | None:
        """The entry of a token's text."""
        entry: int | None = self._model.token_to_id(text)
        return entry

    def token(self, entry: int) -> str | None:
        """The text of an entry, as `find` takes it."""
        text: str | None = self._model.id_to_token(entry)
        return text

    @property
    def first(self) -> int | None:
        """The token that its file puts before each text; `encode` does not."""
        found = self._model.encode("a")
        return int(found.ids[0]) if found.ids and found.special_tokens_mask[0] else None

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text; special tokens written out in it are plain text."""
        return np.array(self._model.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of ids."""
        return _decode_known(tokens, self._entries, self._model.decode)

    def bytes_of(self, token: int, begins: bool = False) -> int:
        """The bytes that decoding adds."""
        before = [] if begins else self._model.encode("a", add_special_tokens=False).ids
        return _bytes_added(token, before, self._model.decode, self._model.id_to_token(token) or "")

    def _first(self, names: tuple[str, ...]) -> int | None:
        return next((token for token in map(self.find, names) if token is not None), None)

    def __reduce__(self) -> tuple:
        return HuggingFace, (self.content, self.name, self.marks)


FileTokenizer = SentencePiece | HuggingFace
KINDS: dict[str, type[FileTokenizer]] = {".model": SentencePiece, ".json": HuggingFace}  # .model.v3 too


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


def load(path: str | Place, log: Callable[[str], None] = lambda line: None) -> Tokenizer:
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
    own = _open(path)
    marks = marking.kept(path.parent) or marking.stated(path.parent, own.size, own.find, log)
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


def _open(path: Place) -> FileTokenizer:
    """A file's tokenizer with its own marks."""
    kind = next((KINDS[suffix] for suffix in path.suffixes if suffix in KINDS), None)
    if kind is None:
        raise ConfigError(f"tokenizer {path}: give 'bytes', a SentencePiece .model or a tokenizer.json")
    if not path.is_file():
        raise ConfigError(f"tokenizer {path}: there is no such file")
    tokenizer = kind(path.read_bytes())
    try:
        _ = tokenizer.size
    except Exception as error:  # tokenizers raises Exception itself, SentencePiece a RuntimeError
        if type(error) is not Exception and not isinstance(error, RuntimeError | ValueError):
            raise
        raise ConfigError(f"tokenizer {path} cannot be read: {error}") from error
    return tokenizer


def train(texts: Iterable[str], size: int) -> HuggingFace:
    """Byte-level pairs, as GPT-2's: at most `size` entries, the 256 bytes among them, learnt from these texts.

    The same texts give the same tokenizer.

    Raises:
        ConfigError: bytes alone are more entries.
    """
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    require(size > ByteTokenizer.size, f"a tokenizer is trained with more than 256 entries, not {size}")
    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(texts, trainer)
    return HuggingFace(model.to_str().encode())


def hash_of(tokenizer: Tokenizer) -> str:
    """Equal hashes encode equally, and begin and end documents alike."""
    marks = tokenizer.marks.to_json().encode() if tokenizer.marks else b""
    return hashlib.sha256(tokenizer.name.encode() + tokenizer.content + marks).hexdigest()[:16]


def save(tokenizer: Tokenizer, folder: Place) -> None:
    """Writes the tokenizer's file, if it has one, and its marks, where they are not whole; see `load_saved`."""
    marks = tokenizer.marks.to_json().encode() if tokenizer.marks else b""
    for path, content in ((folder / tokenizer.name, tokenizer.content), (folder / KEPT, marks)):
        if content and not (path.is_file() and path.read_bytes() == content):
            write_whole(path, content)


def load_saved(
    folder: Place, name: str, expected: str | None = None, remedy: str = "copy it back from a backup"
) -> Tokenizer:
    """The tokenizer that `save` left in a folder.

    Args:
        folder: the folder.
        name: the tokenizer's.
        expected: its `hash_of`; None where a former version has not kept it.
        remedy: what to do where it is damaged, for the error.

    Raises:
        DamagedFile: the file is missing, or not what was written.
    """
    kind, _, size = name.partition("-")
    if kind == "numbers" and size.isdigit():
        found: Tokenizer = Numbers(int(size), marks=marking.kept(folder))
    elif name == ByteTokenizer.name:
        found = ByteTokenizer()
    else:
        try:
            found = replace(_open(folder / name), marks=marking.kept(folder))
        except ConfigError as error:
            raise DamagedFile(f"{error}: {remedy}") from error
    if expected not in (None, hash_of(found)):
        raise DamagedFile(f"{folder / name} is damaged (its hash is not the recorded one): {remedy}")
    return found


def _known(entry: int) -> int | None:
    return entry if entry >= 0 else None


def _decode_known(tokens: np.ndarray, size: int, decode: Callable[[list[int]], str]) -> str:
    """Decodes stretches of known ids; any other id is a replacement character."""
    tokens = np.asarray(tokens)
    known = tokens < size
    stretches = np.split(tokens, np.flatnonzero(np.diff(known)) + 1)
    return "".join(
        decode(stretch.tolist()) if stretch[0] < size else REPLACEMENT * len(stretch)
        for stretch in stretches
        if len(stretch)
    )


def _bytes_added(token: int, before: list[int], decode: Callable[[list[int]], str], name: str) -> int:
    """UTF-8 bytes that an id adds when it is decoded behind others.

    Where it holds a part of a character, its name in the vocabulary says how many: `<0xE2>` is one byte, and
    byte-level tokens are spelt with a letter for each.
    """
    added = decode([*before, token])[len(decode(before)) :]
    if REPLACEMENT not in added or REPLACEMENT in name:
        return len(added.encode())
    return 1 if BYTE_PIECE.fullmatch(name) else len(name)
