"""One input shard into one shard of documents; what cannot be used is reported, and never stops the rest."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.bucket import BucketPath
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.prepare.job import Job
from transfusion_jax.data.prepared import PART, latents_of, shard_file
from transfusion_jax.data.readers import FORMATS, Fault, RawDocument, RawText, origin
from transfusion_jax.data.readers.pictures import PictureError, decode
from transfusion_jax.data.record import Record, Segment, pack, token_type
from transfusion_jax.data.statistics import Moments
from transfusion_jax.data.tokenizer import Tokenizer
from transfusion_jax.storage import Place, put, sha256
from transfusion_jax.training.files import write_whole

WRITE = "group_size:1,uncompressed"  # one record can be read alone; latents and ids hardly compress
WRITE_TEXT = "group_size:1,zstd:3"
KEY_BYTES = 16


def report_file(folder: Place, shard: int) -> Place:
    """What is known of a finished shard; the file appears once all others of the shard are complete."""
    return folder / "shards" / f"{shard:05d}.json"


def columns_file(folder: Place, shard: int) -> Place:
    """A finished shard's columns."""
    return folder / "shards" / f"{shard:05d}.npz"


def faults_file(folder: Place, shard: int) -> Place:
    """One line per record of the shard that was not used."""
    return folder / "shards" / f"{shard:05d}.quarantine.jsonl"


def prepare_shard(folder: Place, job: Job, number: int) -> dict[str, Any]:
    """Reads an input shard and writes its documents; returns its report, which a finished shard has already.

    The bytes written are a function of the job and the input.

    Raises:
        OSError: the input cannot be read, or the folder not be written.
    """
    report = report_file(folder, number)
    if report.exists():
        found: dict[str, Any] = json.loads(report.read_text())
        return found
    shard, columns, faults = job.shards[number], _Columns.empty(), []
    moments = Moments.none(job.channels)
    tokenizer = _tokenizer(folder, job.tokenizer)
    dtype = token_type(tokenizer.size)
    report.parent.mkdir(exist_ok=True)
    pictured = False
    with ExitStack() as stack:
        documents = stack.enter_context(Writer(shard_file(folder, "documents", number), WRITE_TEXT))
        pixels = stack.enter_context(Writer(shard_file(folder, "pixels", number), WRITE))
        seen: dict[bytes, str] = {}
        for found_document in _read(job, number):
            if isinstance(found_document, Fault):
                faults.append(found_document)
                continue
            try:
                document = _convert(found_document, job, tokenizer)
            except PictureError as error:
                faults.append(Fault(found_document.key, str(error)))
                continue
            if document.key in seen:
                faults.append(Fault(found_document.key, f"duplicate: of {seen[document.key]}"))
                continue
            seen[document.key] = found_document.key
            held_out = document.chance < job.held_out
            columns.add(document, documents.records, held_out)
            for record in document.records:
                documents.write(pack(record, dtype))
                pixels.write(document.pixels.tobytes())
            if len(document.pixels):
                pictured = True
                if not held_out:
                    moments += Moments.of(latents_of(document.pixels))
        records = documents.records
    written = {"documents": documents, "pixels": pixels} if pictured else {"documents": documents}
    if not pictured:
        shard_file(folder, "pixels", number).unlink()
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **columns.arrays())
    columns_file(folder, number).write_bytes(packed.getvalue())
    lines = [{"source": origin(shard), "key": fault.key, "reason": fault.reason} for fault in faults]
    write_whole(faults_file(folder, number), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    values = {
        "shard": number,
        "input": origin(shard),
        "records": records,
        "documents": len(columns.key),
        "pictured": pictured,
        "faults": dict(sorted(Counter(fault.reason.partition(":")[0] for fault in faults).items())),
        "moments": moments.to_dict(),
        "size": sum(file.size for file in written.values()),
        "sha256": {kind: file.sha256 for kind, file in written.items()},
    }
    write_whole(report, json.dumps(values, ensure_ascii=False) + "\n")
    return values


@dataclass(frozen=True)
class _Converted:
    """A document ready to be stored."""

    key: bytes  # a hash of its content
    chance: float  # in [0, 1), of its images' content, or of its text's: the same for every caption of an image
    records: list[Record]
    pixels: np.ndarray  # [images, size, size, channels] uint8
    text_length: int


@dataclass(frozen=True)
class _Columns:
    """One entry per document."""

    key: list[bytes]
    record: list[int]
    text_lengths: list[int]
    images: list[int]
    held_out: list[bool]

    @classmethod
    def empty(cls) -> _Columns:
        return cls([], [], [], [], [])

    def add(self, document: _Converted, record: int, held_out: bool) -> None:
        self.key.append(document.key)
        self.record.append(record)
        self.text_lengths.append(document.text_length)
        self.images.append(len(document.pixels))
        self.held_out.append(held_out)

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "key": np.frombuffer(b"".join(self.key), np.uint8).reshape(-1, KEY_BYTES),
            "record": np.array(self.record, np.int64),
            "text_lengths": np.array(self.text_lengths, np.int64),
            "images": np.array(self.images, np.int64),
            "held_out": np.array(self.held_out, bool),
        }


def _read(job: Job, number: int) -> Iterator[RawDocument | Fault]:
    shard = job.shards[number]
    return islice(FORMATS[shard.format].read(shard, job.reading), job.limit or None)


def _convert(raw: RawDocument, job: Job, tokenizer: Tokenizer) -> _Converted:
    """Decodes images and encodes texts.

    Raises:
        PictureError: an image cannot be used.
    """
    segments, pixels, key = [], [], hashlib.blake2b(digest_size=KEY_BYTES)
    for segment in raw.segments:
        if isinstance(segment, RawText):
            content = segment.text.encode()
            segments.append(Segment(tokenizer.encode(segment.text), segment.loss))
        else:
            pixels.append(decode(segment.data, job.reading.image_size, job.channels, job.min_size))
            content = pixels[-1].tobytes()
            segments.append(Segment(None, segment.loss))
        key.update(f"{type(segment).__name__} {segment.loss} {len(content)}:".encode() + content)
    shape = (len(pixels), job.reading.image_size, job.reading.image_size, job.channels)
    images = np.stack(pixels) if pixels else np.zeros(shape, np.uint8)
    split = hashlib.blake2b(images.tobytes() or key.digest(), digest_size=8).digest()
    length = sum(len(s.tokens) for s in segments if s.tokens is not None)
    return _Converted(
        key.digest(), int.from_bytes(split, "little") / 2**64, _records(segments, raw, images), images, length
    )


def _records(segments: list[Segment], raw: RawDocument, images: np.ndarray) -> list[Record]:
    """One record; a plain text is one segment, in as many records as it takes."""
    meta = dict(raw.meta) | {"key": raw.key}
    if len(images):
        return [Record(tuple(segments), meta)]
    tokens = np.concatenate([s.tokens for s in segments if s.tokens is not None])
    parts = [tokens[at : at + PART] for at in range(0, max(len(tokens), 1), PART)]
    return [Record((Segment(part),), meta if n == 0 else {}) for n, part in enumerate(parts)]


class Writer:
    """An ArrayRecord file that appears once it is complete; then its size and hash are known."""

    def __init__(self, path: Place, options: str) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path, self.records, self.size, self.sha256 = path, 0, 0, ""
        self._scratch = tempfile.TemporaryDirectory() if isinstance(path, BucketPath) else None
        folder = Path(self._scratch.name) if self._scratch else Path(str(path.parent))
        self._partial = folder / f"{path.name}.partial"
        self._file = ArrayRecordWriter(str(self._partial), options)

    def write(self, data: bytes) -> None:
        """Adds a record."""
        self._file.write(data)
        self.records += 1

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._file.close()
        if kind is None:
            self.size, self.sha256 = self._partial.stat().st_size, sha256(self._partial)
            put(self._partial, self.path)
        if self._scratch:
            self._scratch.cleanup()


@lru_cache(maxsize=1)
def _tokenizer(folder: Place, name: str) -> Tokenizer:
    return tokenizers.load_saved(folder, name)
