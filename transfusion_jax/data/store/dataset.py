"""Prepared data: a folder of document shards with a manifest, as `transfusion prepare` writes it.

data.json                    the manifest
tokenizer.model, .json       the tokenizer, unless it is bytes
marks.json                   what begins and ends its documents, where the tokenizer itself says otherwise
documents-00000.array_record one record per document, or per part of a long text
pixels-00000.array_record    one record per document record: the images of the document in this encoding
index/train/…, held_out/…    columns of each part of the data, memory-mapped: record, text_lengths, images

Images have one size, or each its own proportions. The latter is another schema, which earlier versions refuse: a
column `areas` has the pixels of a document's images, a record of images begins with their shapes, the `shape` of an
encoding has zeros for height and width, and its `shapes` say how many images have which.

Whatever is read is verified: the manifest by the hash in it, index and tokenizer by those in the manifest, each
record by its own checksum. Of folders that former versions prepared, which lack some of these, what can be.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from bisect import bisect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.config import ConfigError
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.store import index_cache
from transfusion_jax.data.store.columns import AREAS, COLUMNS, SPLITS, column_file, open_column
from transfusion_jax.data.store.latent_stats import LatentStatistics, Moments
from transfusion_jax.data.store.record import (
    DamagedRecord,
    Record,
    belonging,
    merged,
    token_type,
    unpack,
    unpack_images,
    unseal,
)
from transfusion_jax.data.store.remote_records import records_of_chunk
from transfusion_jax.data.tokenizer import Tokenizer
from transfusion_jax.storage.atomic import DamagedFile, read_json
from transfusion_jax.storage.forms import misfit
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.paths import Place, place

SCHEMA = 1
NATIVE = 2  # the schema of a folder whose images have their own proportions
PART = 1 << 16  # tokens of a long text that one record holds
READ = "readahead_buffer_size:0"


class DamagedData(DamagedFile):
    """A file of prepared data that is missing, or not what was written."""


REPREPARE = "run the command that prepared the data again, which repairs it"
REMEDY = f"{REPREPARE}, or copy the data again"
COUNTS = {"documents": int, "images": int, "text_tokens": int, "hash": str}
SUMS = {"count": int, "total": [float], "squares": [float]}
ENCODING = {
    **{"autoencoder": str, "autoencoder_hash": str, "dtype": str, "hash?": str, "moments": (None, SUMS)},
    "shape": ([int, int], [int, int, int]),
}
FORM: dict[str, Any] = {  # of the manifest
    "schema": int,
    "splits": dict.fromkeys(SPLITS, COUNTS),
    "tokenizer": {"name": str, "size": int, "hash": str},
    "encodings": {"pixels?": {**ENCODING, "shape": [int, int, int], "moments": SUMS}, ...: ENCODING},
    "quarantine": {...: int},
    "shards": [{"input": str, "records": int, "sha256": {...: str}, "sealed?": [str]}],
    "index?": {f"{split}/{name}.npy": str for split in SPLITS for name in COLUMNS},
    "quarantine_hash?": str,
}
SHAPES = {"shapes": [[int, int, int]]}  # height, width and number of images, training and held-out ones together
FORMS = {
    SCHEMA: FORM,
    NATIVE: FORM
    | {
        "encodings": {"pixels?": FORM["encodings"]["pixels?"] | SHAPES, ...: ENCODING | SHAPES},
        "index": {f"{split}/{name}.npy": str for split in SPLITS for name in COLUMNS | AREAS},
    },
}


@dataclass(frozen=True)
class Prepared:
    """A prepared folder's manifest."""

    folder: Place
    manifest: dict[str, Any]
    verified: bool = False  # whether another process has verified the index

    @classmethod
    def open(cls, folder: str | Place, verified: bool = False) -> Prepared:
        """Reads the manifest.

        Raises:
            ConfigError: the folder holds no finished data, or data of another version.
            DamagedFile: the manifest is not what was written.
        """
        folder = place(folder)
        if not (folder / "data.json").is_file():
            if (folder / "job.json").exists():
                said = f"the data in {folder} is unfinished: run the command that prepares it again, to go on"
            elif folder.exists():
                said = f"{folder} holds no prepared data: name the --output of transfusion prepare"
            else:
                said = f"{folder} does not exist: transfusion prepare INPUT… --output {folder} makes it"
            raise ConfigError(said)
        manifest = read_json(folder / "data.json", REMEDY)
        schema = manifest.get("schema", SCHEMA)
        if schema not in FORMS:
            raise ConfigError(f"{folder} was prepared by another version (schema {schema}): prepare it again")
        if wrong := misfit(manifest, FORMS[schema]):
            raise DamagedData(f"{folder / 'data.json'} is damaged, or of another program ({wrong}): {REMEDY}")
        return cls(folder, manifest, verified)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """How its texts were encoded."""
        about = self.manifest["tokenizer"]
        return tokenizers.load_saved_tokenizer(self.folder, about["name"], about["hash"], REMEDY)

    @cached_property
    def key(self) -> str:
        """The manifest as a text, which identifies this data."""
        return json.dumps(self.manifest)

    @property
    def native(self) -> bool:
        """Whether each image has its own proportions; else all have one size."""
        return bool(self.manifest.get("schema", SCHEMA) == NATIVE)

    @property
    def columns(self) -> dict[str, type]:
        """The columns of its index, and their types."""
        return COLUMNS | (AREAS if self.native else {})

    def shapes(self, encoding: str) -> dict[tuple[int, int], int]:
        """How many images, training and held-out ones, have which height and width in an encoding.

        Raises:
            ConfigError: the images were not encoded so.
        """
        about = self.encoding(encoding)
        if self.native:
            return {(height, width): count for height, width, count in about["shapes"]}
        images = sum(split["images"] for split in self.manifest["splits"].values())
        return {tuple(about["shape"][:2]): images} if images else {}

    @cached_property
    def index(self) -> Path:
        """The folder of its columns; of a bucket's, a copy on this machine."""
        if not isinstance(self.folder, BucketPath):
            return self.folder / "index"
        names = [f"{split}/{column}.npy" for split in SPLITS for column in self.columns]
        try:
            return index_cache.index_folder(self.folder, self.key, names, self.verified)
        except FileNotFoundError as error:
            raise DamagedData(f"{error.filename} is missing: copy or prepare the data again") from error

    def column(self, split: str, name: str) -> np.ndarray:
        """A column of a part's index, `[documents]`, memory-mapped.

        Raises:
            DamagedData: it is missing, or not what was written.
        """
        try:
            return open_column(self.index, split, name, self.manifest, self.verified)
        except (OSError, EOFError, ValueError) as error:  # it is missing, cut short or no such file
            path = column_file(self.index, split, name)
            raise DamagedData(f"the index of {self.folder} is damaged ({path}: {error}): {REMEDY}") from error

    @cached_property
    def ends(self) -> list[int]:
        """How many records each shard and those before it hold."""
        return list(itertools.accumulate(shard["records"] for shard in self.manifest["shards"]))

    def shard_of(self, record: int) -> int:
        """The number of the shard that holds a record."""
        return bisect(self.ends, record)

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
        key = hashlib.sha256(self.prepared.key.encode()).hexdigest()
        return _reopen, (self.prepared.folder, key, self.split, self.encoding, self.statistics)

    @property
    def remote(self) -> bool:
        """Whether it is read over a network."""
        return isinstance(self.prepared.folder, BucketPath)

    def make_ready(self) -> PreparedDocuments:
        """Verifies the index, and fetches what this machine keeps of data in a bucket, for all other processes.

        Returns itself.

        Raises:
            DamagedData: the index is not what was written.
        """
        _ = self.text_lengths, self.images, self._records, self._pixels
        if self.remote:
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

    def areas(self, documents: np.ndarray | slice) -> np.ndarray:
        """Latent places, in its encoding, of all images of each of these documents, `[n]` int64."""
        if self._pixels is not None:
            return self._pixels[documents].astype(np.int64) // self._pixels_per_place
        images = self.images[documents].astype(np.int64)
        if not self.prepared.manifest["encodings"]:
            return images  # there are none
        height, width = self.prepared.encoding(self.encoding)["shape"][:2]
        return images * (height * width)

    @property
    def shapes(self) -> frozenset[tuple[int, int]]:
        """The latent heights and widths, in its encoding, of the folder's images, held-out ones among them."""
        return frozenset(self.prepared.shapes(self.encoding) if self.prepared.manifest["encodings"] else ())

    def __getitem__(self, number: int) -> Document:
        first = self.first_record(number)
        if not self.images[number]:
            parts = max(-(-int(self.text_lengths[number]) // PART), 1)
            texts = merged(s for part in range(parts) for s in self.record(first + part).segments)
            return Document(tuple(Text(s.tokens, s.loss) for s in texts if s.tokens is not None))
        latents = iter(self.latents(first))
        return Document(
            tuple(
                Image(next(latents), s.loss) if s.tokens is None else Text(s.tokens, s.loss)
                for s in self.record(first).segments
            )
        )

    def text(self, number: int, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` of a document without images."""
        first, end = self.first_record(number), min(end, int(self.text_lengths[number]))
        parts = range(begin // PART, -(-end // PART))
        if not parts:
            return np.zeros(0, np.int32)
        tokens = np.concatenate([s.tokens for part in parts for s in self.record(first + part).segments])
        return tokens[begin - parts[0] * PART : end - parts[0] * PART]

    def first_record(self, number: int) -> int:
        """The number of the record that a document begins with.

        Raises:
            DamagedData: there is no such document.
        """
        if not 0 <= number < len(self._records):
            raise DamagedData(
                f"document {number} was requested, but {self.prepared.folder} holds {len(self._records)} "
                f"({self.split}): if a cached row plan requests it, delete that plan"
            )
        return int(self._records[number])

    def origin(self, number: int) -> str:
        """Where a document was found: the input, and the key of the record in it."""
        first = self.first_record(number)
        shard = self.prepared.manifest["shards"][self.prepared.shard_of(first)]
        return f"{shard['input']}: {self.record(first).meta['key']}"

    def record(self, number: int) -> Record:
        """What a document's record holds."""
        tokenizer = self.prepared.manifest["tokenizer"]
        try:
            return unpack(self._read("documents", tokenizer["hash"], number), token_type(tokenizer["size"]))
        except (ValueError, IndexError) as error:
            raise DamagedData(self._damage("documents", number, error)) from error

    def latents(self, number: int) -> list[np.ndarray]:
        """The normalised latents `[h, w, c]`, or the codes `[h, w]`, of each image of a document's record."""
        images = self.stored(number)
        if self.statistics is None:
            return [codes.astype(np.int32) for codes in images]
        return [self.statistics.normalise(latents_of(image)) for image in images]

    def stored(self, number: int) -> list[np.ndarray]:
        """Each image of a document's record as it is stored in this encoding.

        Raises:
            DamagedData: the record is not what was written.
        """
        about = self.prepared.encoding(self.encoding)
        data = self._read(self.encoding, about["autoencoder_hash"], number)
        try:
            return unpack_images(data, np.dtype(about["dtype"]), about["shape"])
        except ValueError as error:
            raise DamagedData(self._damage(self.encoding, number, error)) from error

    @cached_property
    def _records(self) -> np.ndarray:
        return self._column("record")

    @cached_property
    def _pixels(self) -> np.ndarray | None:
        """Pixels of each document's images, `[n]`, memory-mapped; None where all images have one size."""
        return self._column("areas") if self.prepared.native else None

    @cached_property
    def _pixels_per_place(self) -> int:
        """How many pixels one latent place stands for: the square of the autoencoder's factor."""
        if not self.prepared.manifest["encodings"]:
            return 1  # there are no images
        pixels, places = (
            sum(height * width * count for (height, width), count in self.prepared.shapes(name).items())
            for name in ("pixels", self.encoding)
        )
        return pixels // max(places, 1)

    @cached_property
    def _files(self) -> dict[tuple[str, int], Any]:
        return {}

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        return {}

    def _column(self, name: str) -> np.ndarray:
        return self.prepared.column(self.split, name)

    def _read(self, kind: str, codec: str, number: int) -> bytes:
        """A record that the codec of this hash encoded."""
        shard = self.prepared.shard_of(number)
        about = self.prepared.manifest["shards"][shard]
        place = number - (self.prepared.ends[shard - 1] if shard else 0)
        try:
            data = self._read_remote(kind, shard, number) if self.remote else self._read_local(kind, shard, place)
            sealed = kind in about.get("sealed", ())
            return unseal(data, belonging(kind, codec, about["input"], shard), place) if sealed else data
        except (
            RuntimeError,
            IndexError,
            DamagedRecord,
            FileNotFoundError,
        ) as error:  # array_record raises the first
            raise DamagedData(self._damage(kind, number, error)) from error

    def _damage(self, kind: str, number: int, error: Exception) -> str:
        shard = self.prepared.shard_of(number)
        path = shard_file(self.prepared.folder, kind, shard)
        return f"{path} is damaged: {remedy(kind, shard)} ({str(error).partition(';')[0]})"

    def _read_local(self, kind: str, shard: int, place: int) -> bytes:
        """The record at a place of a shard's file, which stays open."""
        file = self._files.get((kind, shard))
        if file is None:
            from array_record.python.array_record_module import ArrayRecordReader

            path = shard_file(self.prepared.folder, kind, shard)
            file = self._files[kind, shard] = ArrayRecordReader(str(path), READ)
        data: bytes = file.read([place])[0]
        return data

    def _read_remote(self, kind: str, shard: int, number: int) -> bytes:
        """A record of a file in a bucket."""
        path = shard_file(self.prepared.folder, kind, shard)
        assert isinstance(path, BucketPath)
        begin, end = self._place(kind)[number].tolist()
        return records_of_chunk(path.read_bytes(begin, end), begin)[0]

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
                found = index_cache.record_places(folder, self.prepared.key, files, records, self.prepared.verified)
            except DamagedRecord as error:
                raise DamagedData(f"{error}: copy or prepare the data again") from error
            self._places[kind] = found
        return self._places[kind]


def _reopen(
    folder: Place, key: str, split: str, encoding: str, statistics: LatentStatistics | None
) -> PreparedDocuments:
    prepared = Prepared.open(folder, verified=True)
    if hashlib.sha256(prepared.key.encode()).hexdigest() != key:
        raise DamagedData(f"{folder} was prepared again while it was read: run the same command again")
    return PreparedDocuments(prepared, split, encoding, statistics)


def shard_file(folder: Place, kind: str, shard: int) -> Place:
    """The file of documents, or of an encoding, of one shard."""
    return folder / f"{kind}-{shard:05d}.array_record"


def remedy(kind: str, shard: int) -> str:
    """How to repair a shard's file of documents, pixels or another encoding, for an error."""
    report = f"{shard:05d}.json" if kind in ("documents", "pixels") else f"{shard:05d}.{kind}.json"
    return f"delete shards/{report} beside it and run the command that prepared it again"


def latents_of(stored: np.ndarray) -> np.ndarray:
    """Latents as they are stored; pixels 0 … 255 become −1 … 1, float32."""
    return stored.astype(np.float32) / np.float32(127.5) - 1 if stored.dtype == np.uint8 else stored
