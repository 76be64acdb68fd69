"""Tokenizers that files describe: SentencePiece's and Hugging Face's, and byte pairs learnt from texts."""

from __future__ import annotations

import json
import re
import secrets
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
MOST = 1 << 20  # entries that one is trained with: room for all is taken at once


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

    @cached_property
    def _marks(self) -> frozenset[int]:
        return frozenset(mark for mark in (self.bos, self.eos, *self.stops) if mark is not None)

    @cached_property
    def _plain(self) -> Any:
        """The model in which marks are control tokens, which no text becomes."""
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        found = sentencepiece_model_pb2.ModelProto.FromString(self.content)
        for entry in self._marks - {self._model.unk_id()}:
            if entry < self._entries:
                found.pieces[entry].type = found.pieces[entry].CONTROL
        return SentencePieceProcessor(model_proto=found.SerializeToString())

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text; special tokens written out in it are plain text."""
        return _plain_ids(self._model.encode(text), lambda: self._plain.encode(text), self._marks, self._marks)

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

        return _only_encoding(Model.from_str(self.content.decode()))

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

    @cached_property
    def _marks(self) -> frozenset[int]:
        return frozenset(mark for mark in (self.bos, self.eos, *self.stops) if mark is not None)

    @cached_property
    def _special(self) -> frozenset[int]:
        """Marks, entries with the usual names, and what its file calls special."""
        usual = (self.find(name) for name in (*BOS_NAMES, *EOS_NAMES))
        added = self._model.get_added_tokens_decoder().items()
        flagged = {entry for entry, token in added if token.special}
        return self._marks | flagged | {entry for entry in usual if entry is not None}

    @cached_property
    def _plain(self) -> Any:
        """The model in which special tokens have names that no text holds."""
        from tokenizers import Tokenizer as Model

        names = {self._model.id_to_token(entry) for entry in self._special}
        return _only_encoding(Model.from_str(_with_hidden(self.content, names)))

    def _ids(self, model: Any, text: str) -> list[int]:
        try:
            found: list[int] = model.encode(text, add_special_tokens=False).ids
        except Exception as error:  # what tokenizers raises where there is no entry, not even for unknown words
            if type(error) is not Exception:
                raise
            return []
        return found

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text; special tokens written out in it are plain text.

        There are no ids where the tokenizer cannot write the text: it has no entry for a word, and none for unknown
        words.
        """
        return _plain_ids(
            self._ids(self._model, text), lambda: self._ids(self._plain, text), self._special, self._marks
        )

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
        ConfigError: bytes alone are more entries, or they are more than anybody has.
    """
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    require(BYTES < size <= MOST, f"a tokenizer is trained with 257 to {MOST:,} entries, not {size}")
    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(texts, trainer)
    return HuggingFace(model.to_str().encode())


def _only_encoding(model: Any) -> Any:
    """A model that keeps texts whole, and in which added special tokens are texts where they are written out."""
    model.encode_special_tokens = True
    model.no_truncation()
    model.no_padding()
    return model


def _with_hidden(content: bytes, names: set[str]) -> str:
    """A `tokenizer.json` with other names for some entries, their ids kept: names that no text holds.

    The entry for unknown words keeps its name.
    """
    values = json.loads(content)
    model = values["model"]
    listed = isinstance(model["vocab"], list)  # of Unigram, with scores
    unknown = (
        model["vocab"][model["unk_id"]][0] if listed and model.get("unk_id") is not None else model.get("unk_token")
    )
    unwritten = secrets.token_hex(16)  # a new one in every process: nobody can write it down

    def hidden(name: str) -> str:
        return unwritten + name if name in names and name != unknown else name

    if listed:
        model["vocab"] = [[hidden(name), score] for name, score in model["vocab"]]
    else:
        model["vocab"] = {hidden(name): entry for name, entry in model["vocab"].items()}
    if "merges" in model:
        within = model.get("continuing_subword_prefix") or ""  # begins parts that are no word's first
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [
            (left, right)
            for left, right in pairs
            if names.isdisjoint((left, right, left + right.removeprefix(within)))
        ]
    for token in values["added_tokens"]:
        token["content"] = hidden(token["content"])
    return json.dumps(values)


def _plain_ids(
    found: list[int], plain: Callable[[], list[int]], special: frozenset[int], marks: frozenset[int]
) -> np.ndarray:
    """A text's ids, or its `plain` ones where special tokens are among them; none if those still hold marks."""
    if not special.isdisjoint(found):
        found = plain()
    return np.array(found if marks.isdisjoint(found) else [], np.int32)


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
