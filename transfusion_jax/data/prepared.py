"""Prepared data: a folder of document shards with a manifest, as `transfusion prepare` writes it.

data.json                    the manifest
tokenizer.model, .json       the tokenizer, unless it is bytes
documents-00000.array_record one record per document, or per part of a long text
pixels-00000.array_record    one record per document record: the images of the document in this encoding
index/train/…, held_out/…    columns of each part of the data, memory-mapped: record, text_lengths, images
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.bucket import BucketPath
from transfusion_jax.config import ConfigError
from transfusion_jax.data import mirror
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.ranges import DamagedRecord, records_of
from transfusion_jax.data.record import Record, token_type, unpack
from transfusion_jax.data.statistics import LatentStatistics, Moments
from transfusion_jax.data.tokenizer import Tokenizer
from transfusion_jax.errors import UserError
from transfusion_jax.storage import Place, place

SCHEMA = 1
PART = 1 << 16  # tokens of a long text that one record holds
SPLITS = ("train", "held_out")
COLUMNS = {"record": np.int64, "text_lengths": np.uint32, "images": np.uint16}
READ = "readahead_buffer_size:0"


class DamagedData(UserError):
    """A file of prepared data that cannot be read."""


@dataclass(frozen=True)
class Prepared:
    """A prepared folder's manifest."""

    folder: Place
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Place) -> Prepared:
        """Reads the manifest.

        Raises:
            ConfigError: the folder holds no finished data, or data of another version.
        """
        folder = place(folder)
        if not (folder / "data.json").is_file():
            unfinished = (folder / "job.json").exists()
            raise ConfigError(
                f"the data in {folder} is unfinished: give the command that prepares it again, it goes on"
                if unfinished
                else f"{folder} holds no prepared data: transfusion prepare INPUT… --output {folder}"
            )
        manifest = json.loads((folder / "data.json").read_text())
        if manifest["schema"] != SCHEMA:
            raise ConfigError(
                f"{folder} was prepared by another version (schema {manifest['schema']}): prepare it anew"
            )
        return cls(folder, manifest)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """How its texts were encoded."""
        return tokenizers.load_saved(self.folder, self.manifest["tokenizer"]["name"])

    @cached_property
    def index(self) -> Path:
        """The folder of its columns; of a bucket's, a copy on this machine."""
        if not isinstance(self.folder, BucketPath):
            return self.folder / "index"
        names = [f"{split}/{column}.npy" for split in SPLITS for column in COLUMNS]
        try:
            return mirror.index_folder(self.folder, json.dumps(self.manifest), names)
        except FileNotFoundError as error:
            raise DamagedData(f"{error.filename} is missing: copy or prepare the data anew") from error

    @cached_property
    def ends(self) -> np.ndarray:
        """How many records each shard and those before it hold, `[shards]`."""
        return np.cumsum([shard["records"] for shard in self.manifest["shards"]])

    def moments(self, encoding: str) -> Moments:
        """Sums over the training images' latents."""
        return Moments.from_dict(self.encoding(encoding)["moments"])

    def encoding(self, name: str) -> dict[str, Any]:
        """What the manifest says of an encoding of its images.

        Raises:
            ConfigError: the images were not encoded so.
        """
        found: dict[str, Any] = self.manifest["encodings"]
        if name not in found:
            raise ConfigError(
                f"the images in {self.folder} have no encoding {name!r}; there is {', '.join(found) or 'none'}"
            )
        entry: dict[str, Any] = found[name]
        return entry


@dataclass(frozen=True, repr=False)
class PreparedDocuments:
    """`Documents` of one part of a prepared folder; another process opens the files anew."""

    prepared: Prepared
    split: str
    encoding: str
    statistics: LatentStatistics | None  # None: of codes, which are not normalised

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.prepared.folder, self.split, self.encoding, self.statistics)

    @property
    def remote(self) -> bool:
        """Whether it is read over a network."""
        return isinstance(self.prepared.folder, BucketPath)

    def make_ready(self) -> PreparedDocuments:
        """Fetches what this machine keeps of data in a bucket, so that no other process has to; returns itself."""
        if self.remote:
            _ = self.prepared.index
            for kind in ("documents", *([self.encoding] if self.prepared.manifest["encodings"] else [])):
                self._place(kind)
        return self

    @property
    def hash(self) -> str:
        """A hash of every document, in order."""
        about = self.prepared.manifest["splits"][self.split]
        return about["hash"] + (f"-{self.prepared.encoding(self.encoding)['hash']}" if about["images"] else "")

    @cached_property
    def text_lengths(self) -> np.ndarray:
        """Text tokens of each document, `[n]`, memory-mapped."""
        return self._column("text_lengths")

    @cached_property
    def images(self) -> np.ndarray:
        """Images of each document, `[n]`, memory-mapped."""
        return self._column("images")

    def __getitem__(self, number: int) -> Document:
        first = self.first_record(number)
        parts = -(-int(self.text_lengths[number]) // PART) if not self.images[number] else 1
        records = [self.record(first + part) for part in range(max(parts, 1))]
        if len(records) > 1:
            tokens = np.concatenate([segment.tokens for r in records for segment in r.segments])
            return Document((Text(tokens, records[0].segments[0].loss),))
        latents = iter(self.latents(first) if self.images[number] else ())
        return Document(
            tuple(
                Image(next(latents), s.loss) if s.tokens is None else Text(s.tokens, s.loss)
                for s in records[0].segments
            )
        )

    def text(self, number: int, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` of a document that is one text."""
        first, end = self.first_record(number), min(end, int(self.text_lengths[number]))
        parts = range(begin // PART, -(-end // PART))
        if not parts:
            return np.zeros(0, np.int32)
        tokens = np.concatenate([s.tokens for part in parts for s in self.record(first + part).segments])
        return tokens[begin - parts[0] * PART : end - parts[0] * PART]

    def first_record(self, number: int) -> int:
        """The number of the record that a document begins with."""
        return int(self._records[number])

    def origin(self, number: int) -> str:
        """Where a document was found: the input, and the key of the record in it."""
        first = self.first_record(number)
        shard = self.prepared.manifest["shards"][int(np.searchsorted(self.prepared.ends, first, side="right"))]
        return f"{shard['input']}: {self.record(first).meta['key']}"

    def record(self, number: int) -> Record:
        """What a document's record holds."""
        return unpack(self._read("documents", number), token_type(self.prepared.manifest["tokenizer"]["size"]))

    def latents(self, number: int) -> np.ndarray:
        """The normalised latents `[images, h, w, c]`, or the codes `[images, h, w]`, of a document's record."""
        about = self.prepared.encoding(self.encoding)
        stored = np.frombuffer(self._read(self.encoding, number), about["dtype"]).reshape(-1, *about["shape"])
        return stored.astype(np.int32) if self.statistics is None else self.statistics.normalise(latents_of(stored))

    @cached_property
    def _records(self) -> np.ndarray:
        return self._column("record")

    @cached_property
    def _files(self) -> dict[tuple[str, int], Any]:
        return {}

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        return {}

    def _column(self, name: str) -> np.ndarray:
        return np.asarray(np.load(self.prepared.index / self.split / f"{name}.npy", mmap_mode="r"))

    def _read(self, kind: str, number: int) -> bytes:
        shard = int(np.searchsorted(self.prepared.ends, number, side="right"))
        path = shard_file(self.prepared.folder, kind, shard)
        try:
            if isinstance(path, BucketPath):
                begin, end = self._place(kind)[number].tolist()
                return records_of(path.read_bytes(begin, end), begin)[0]
            return self._read_local(path, kind, shard, number)
        except (RuntimeError, DamagedRecord, FileNotFoundError) as error:  # array_record raises the first
            raise DamagedData(
                f"{path} is damaged: delete shards/{shard:05d}.json beside it and give the command that prepared "
                f"it again ({str(error).partition(';')[0]})"
            ) from error

    def _read_local(self, path: Path, kind: str, shard: int, number: int) -> bytes:
        from array_record.python.array_record_module import ArrayRecordReader

        if (kind, shard) not in self._files:
            self._files[kind, shard] = ArrayRecordReader(str(path), READ)
        begin = int(self.prepared.ends[shard - 1]) if shard else 0
        data: bytes = self._files[kind, shard].read([number - begin])[0]
        return data

    def _place(self, kind: str) -> np.ndarray:
        """Where a bucket's records of a kind lie."""
        if kind not in self._places:
            folder, shards = self.prepared.folder, self.prepared.manifest["shards"]
            assert isinstance(folder, BucketPath)
            files = [
                shard_file(folder, kind, number).name if kind in shard["sha256"] else ""
                for number, shard in enumerate(shards)
            ]
            records = [shard["records"] for shard in shards]
            try:
                found = mirror.record_places(folder, json.dumps(self.prepared.manifest), files, records)
            except DamagedRecord as error:
                raise DamagedData(f"{error}: copy or prepare the data anew") from error
            self._places[kind] = found
        return self._places[kind]


def _reopen(folder: Place, split: str, encoding: str, statistics: LatentStatistics | None) -> PreparedDocuments:
    return PreparedDocuments(Prepared.open(folder), split, encoding, statistics)


def shard_file(folder: Place, kind: str, shard: int) -> Place:
    """The file of documents, or of an encoding, of one shard."""
    return folder / f"{kind}-{shard:05d}.array_record"


def latents_of(stored: np.ndarray) -> np.ndarray:
    """Latents as they are stored, as float32; pixels 0 … 255 become −1 … 1."""
    if stored.dtype == np.uint8:
        return stored.astype(np.float32) / np.float32(127.5) - 1
    return stored.astype(np.float32)
