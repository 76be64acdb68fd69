"""Tokenizers that files describe: SentencePiece's and Hugging Face's, and byte pairs learnt from texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from transfusion_jax.config import ConfigError, require
from transfusion_jax.data.marks import Marks
from transfusion_jax.storage.paths import Place

BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]")
EOS_NAMES = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[EOS]")
REPLACEMENT = "\ufffd"
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")  # how vocabularies without byte-level tokens name a byte
BYTES = 256  # entries that every byte-level vocabulary has


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
        return decode_known(tokens, self._entries, self._model.decode)

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
        return decode_known(tokens, self._entries, self._model.decode)

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


def open_tokenizer(path: Place) -> FileTokenizer:
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


def train_byte_pairs(texts: Iterable[str], size: int) -> HuggingFace:
    """Byte-level pairs, as GPT-2's: at most `size` entries, the 256 bytes among them, learnt from these texts.

    The same texts give the same tokenizer.

    Raises:
        ConfigError: bytes alone are more entries.
    """
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    require(size > BYTES, f"a tokenizer is trained with more than 256 entries, not {size}")
    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(texts, trainer)
    return HuggingFace(model.to_str().encode())


def _known(entry: int) -> int | None:
    return entry if entry >= 0 else None


def decode_known(tokens: np.ndarray, size: int, decode: Callable[[list[int]], str]) -> str:
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
