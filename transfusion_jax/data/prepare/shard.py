"""One input shard into one shard of documents; what cannot be used is reported, and never stops the rest."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import extend
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.prepare.job import PrepareJob, kept_tokenizer, owned_by_job
from transfusion_jax.data.readers import Fault, RawDocument, RawImage, RawText, origin, read_shard
from transfusion_jax.data.readers.pictures import PictureError, decode
from transfusion_jax.data.readers.records import RecordError, check_count, most_images
from transfusion_jax.data.store.dataset import PART, latents_of, shard_file
from transfusion_jax.data.store.latent_stats import Moments
from transfusion_jax.data.store.record import (
    Record,
    Segment,
    belonging,
    merged,
    pack,
    pack_images,
    sealed_record,
    token_type,
)
from transfusion_jax.data.tokenizer import Tokenizer
from transfusion_jax.storage.atomic import (
    DamagedFile,
    json_text,
    parse_json,
    read_json,
    whole,
    write_json,
    write_whole,
)
from transfusion_jax.storage.paths import Place, file_sizes, read_all, sha256

WRITE = "group_size:1,uncompressed"  # one record can be read alone; latents and ids hardly compress
WRITE_TEXT = "group_size:1,zstd:3"
KEY_BYTES = 16
NAMES = "names"  # a column of JSON's bytes, which older versions did not write
SIDES = "sides"  # heights and widths, `[images, 2]`, of the images of all documents in order, where they may differ
SHOWN = 1000  # characters of a key, and of a reason, in a line of the quarantine
LINES = 1 << 16  # of a shard's quarantine for faults of one kind: a small file may unpack to any number of records


def report_file(folder: Place, shard: int) -> Place:
    """What is known of a finished shard; the file appears once all others of the shard are complete."""
    return folder / "shards" / f"{shard:05d}.json"


def columns_file(folder: Place, shard: int) -> Place:
    """A finished shard's columns."""
    return folder / "shards" / f"{shard:05d}.npz"


def faults_file(folder: Place, shard: int) -> Place:
    """One line per record of the shard that was not used."""
    return folder / "shards" / f"{shard:05d}.quarantine.jsonl"


REPORT = {"input": str, "records": int, "pictured": bool, "faults": {...: int}, "sha256": {...: str}}


def fault_line(source: str, fault: Fault) -> str:
    """A line of the quarantine."""
    return json_text({"source": source, "key": fault.key[:SHOWN], "reason": fault.reason[:SHOWN]}) + "\n"


def read_report(path: Place, form: Any = REPORT) -> dict[str, Any]:
    """What is known of a finished shard, or of one in an encoding.

    Raises:
        DamagedFile: it is not what was written.
    """
    return read_json(path, "delete it and run the command that prepared it again", form)


def sound(folder: Place, numbers: Iterable[int]) -> set[int]:
    """Of these shards, those that are prepared and whose files are there, as long as they were written.

    Large files are not read; `transfusion doctor --verify` does that.
    """
    there = file_sizes(folder) if folder.exists() else {}
    asked = [number for number in numbers if f"shards/{number:05d}.json" in there]
    paths = [report_file(folder, number) for number in asked]
    return {
        number
        for number, path, data in zip(asked, paths, read_all(paths), strict=True)
        if _is_sound(folder, there, number, path, data)
    }


def _is_sound(folder: Place, there: dict[str, int], number: int, path: Place, data: bytes) -> bool:
    try:
        report = parse_json(data, path, "", REPORT)
    except DamagedFile:
        return False
    small = {columns_file(folder, number): "columns", faults_file(folder, number): "faults"}
    if any(f"shards/{file.name}" not in there for file in small):
        return False
    if any(is_changed(file, report.get("hashes", {}).get(name)) for file, name in small.items()):
        return False
    lengths = {kind: there.get(shard_file(folder, kind, number).name) for kind in report["sha256"]}
    return None not in lengths.values() and report.get("bytes", lengths) == lengths


def is_changed(path: Place, expected: str | None) -> bool:
    """Whether a file's hash differs; never where a former version kept no hash."""
    return expected not in (None, sha256(path))


def prepare_shard(folder: Place, job: PrepareJob, number: int) -> dict[str, Any]:
    """Reads an input shard and writes its documents; returns its report, which a finished shard has already.

    The bytes written are a function of the job and the input.

    Raises:
        OSError: the input cannot be read, or the folder not be written.
        LostFolder: the folder is another's by now.
    """
    report = report_file(folder, number)
    if report.exists():
        return read_report(report)
    extend(job.extensions)
    with owned_by_job(folder, job):
        return _prepare(folder, job, number)


def _prepare(folder: Place, job: PrepareJob, number: int) -> dict[str, Any]:
    columns, moments = _Columns.empty(), Moments.none(job.channels)
    native = job.reading.native is not None
    reasons: Counter[str] = Counter()
    tokenizer, input_name = kept_tokenizer(folder, job.tokenizer), origin(job.shards[number])
    dtype = token_type(tokenizer.size)
    pictured = False
    texts = belonging("documents", tokenizers.hash_of(tokenizer), input_name, number)
    images = belonging("pixels", Identity().hash(), input_name, number)
    with ExitStack() as stack:
        documents = stack.enter_context(ShardWriter(shard_file(folder, "documents", number), WRITE_TEXT, texts))
        pixels = stack.enter_context(ShardWriter(shard_file(folder, "pixels", number), WRITE, images))
        partial = stack.enter_context(whole(faults_file(folder, number)))
        lines = stack.enter_context(partial.open("w", encoding="utf-8"))
        seen: dict[bytes, str] = {}
        for found in _read(job, number):
            faults = [found] if isinstance(found, Fault) else []
            document = None if isinstance(found, Fault) else _new(found, job, tokenizer, seen, faults)
            for fault in faults:  # as they come: there may be more of them than fit the memory
                kind = fault.reason.partition(":")[0]
                reasons[kind] += 1
                if reasons[kind] <= LINES:
                    lines.write(fault_line(input_name, fault))
            if document is None:
                continue
            held_out = document.chance < job.held_out
            columns.add(document, found.key, documents.records, held_out)
            for record in document.records:
                documents.write(pack(record, dtype))
                pixels.write(pack_images(document.pixels, of_one_shape=not native))
            if document.pixels:
                pictured = True
                if not held_out:
                    moments += Moments.of_all([latents_of(image) for image in document.pixels], job.channels)
        for kind, count in sorted(reasons.items()):
            if count > LINES:
                more = f"{kind}: and {count - LINES:,} more, after {LINES:,} that have a line each"
                lines.write(fault_line(input_name, Fault("", more)))
        records = documents.records
    written = {"documents": documents, "pixels": pixels} if pictured else {"documents": documents}
    if not pictured:
        shard_file(folder, "pixels", number).unlink()
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **columns.arrays(native))
    write_whole(columns_file(folder, number), packed.getvalue())
    values = {
        "shard": number,
        "input": input_name,
        "records": records,
        "documents": len(columns.key),
        "pictured": pictured,
        "faults": dict(sorted(reasons.items())),
        "moments": moments.to_dict(),
        "size": sum(file.size for file in written.values()),
        "bytes": {kind: file.size for kind, file in written.items()},
        "sha256": {kind: file.sha256 for kind, file in written.items()},
        "sealed": True,
        "hashes": {"columns": sha256(columns_file(folder, number)), "faults": sha256(faults_file(folder, number))},
    }
    write_json(report_file(folder, number), values)
    return values


@dataclass(frozen=True)
class _Converted:
    """A document ready to be stored."""

    key: bytes  # a hash of its content
    chance: float  # in [0, 1), of its images' content, or of its text's: the same for every caption of an image
    records: list[Record]
    pixels: list[np.ndarray]  # of each image, [height, width, channels] uint8
    text_length: int


@dataclass(frozen=True)
class _Columns:
    """One entry per document."""

    key: list[bytes]
    name: list[str]  # where it was found: the record's key
    record: list[int]
    text_lengths: list[int]
    images: list[int]
    held_out: list[bool]
    sides: list[tuple[int, ...]]  # one entry per image

    @classmethod
    def empty(cls) -> _Columns:
        return cls([], [], [], [], [], [], [])

    def add(self, document: _Converted, name: str, record: int, held_out: bool) -> None:
        self.key.append(document.key)
        self.name.append(name[:SHOWN])
        self.record.append(record)
        self.text_lengths.append(document.text_length)
        self.images.append(len(document.pixels))
        self.held_out.append(held_out)
        self.sides.extend(image.shape[:2] for image in document.pixels)

    def arrays(self, native: bool) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {
            "key": np.frombuffer(b"".join(self.key), np.uint8).reshape(-1, KEY_BYTES),
            NAMES: np.frombuffer(json.dumps(self.name).encode(), np.uint8),
            "record": np.array(self.record, np.int64),
            "text_lengths": np.array(self.text_lengths, np.int64),
            "images": np.array(self.images, np.int64),
            "held_out": np.array(self.held_out, bool),
        }
        if native:
            found[SIDES] = np.array(self.sides, np.uint16).reshape(-1, 2)
        return found


def _read(job: PrepareJob, number: int) -> Iterator[RawDocument | Fault]:
    shard = job.shards[number]
    return islice(read_shard(shard, job.reading), job.limit or None)


def _new(
    raw: RawDocument, job: PrepareJob, tokenizer: Tokenizer, seen: dict[bytes, str], faults: list[Fault]
) -> _Converted | None:
    """A document that is new to the shard, or None where it cannot be used; what is wrong becomes faults."""
    try:
        document = _convert(raw, job, tokenizer, faults)
    except (PictureError, RecordError) as error:
        faults.append(Fault(raw.key, str(error)))
        return None
    if document.key in seen:
        faults.append(Fault(raw.key, f"duplicate: of {seen[document.key]}"))
        return None
    seen[document.key] = raw.key[:SHOWN]
    return document


def _convert(raw: RawDocument, job: PrepareJob, tokenizer: Tokenizer, faults: list[Fault]) -> _Converted:
    """Decodes images and encodes texts; a page's parts that cannot be used become faults.

    Raises:
        PictureError: an image cannot be used.
        RecordError: nothing else can, or the document is too large.
    """
    _check_meta(raw)
    images = sum(isinstance(segment, RawImage) for segment in raw.segments)
    check_count(images, most_images(job.reading.area, job.channels))
    segments, pixels, shown, key = [], [], list[bytes](), hashlib.blake2b(digest_size=KEY_BYTES)
    for place, segment in enumerate(raw.segments):
        try:
            content, values = _encode(segment, job, tokenizer)
        except (PictureError, RecordError) as error:
            if not raw.places:
                raise
            faults.append(Fault(f"{raw.key}#{raw.places[place]}", str(error)))
            continue
        is_text = isinstance(segment, RawText)
        if not is_text:
            pixels.append(values)
            shown.append(content)
        segments.append(Segment(values if is_text else None, segment.loss))
        key.update(f"{type(segment).__name__} {segment.loss} {len(content)}:".encode() + content)
    if not segments:
        raise RecordError("no segment that can be used")
    split = hashlib.blake2b(b"".join(shown) or key.digest(), digest_size=8).digest()
    length = sum(len(s.tokens) for s in segments if s.tokens is not None)
    return _Converted(
        key.digest(), int.from_bytes(split, "little") / 2**64, _records(segments, raw, pixels), pixels, length
    )


def _check_meta(raw: RawDocument) -> None:
    """Raises RecordError where what is to be kept cannot be."""
    try:
        json.dumps(dict(raw.meta), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordError(f"meta cannot be kept: it is not JSON in UTF-8 ({str(error)[:100]})") from error


def _encode(segment: RawText | RawImage, job: PrepareJob, tokenizer: Tokenizer) -> tuple[bytes, np.ndarray]:
    """What a segment's hash is of, and its token ids or its pixels.

    Raises:
        PictureError: an image cannot be used.
        RecordError: a text cannot.
    """
    if isinstance(segment, RawImage):
        pixels = decode(segment.data, job.reading.size, job.channels, job.min_size)
        sides = np.array(pixels.shape[:2], "<u2").tobytes() if job.reading.native else b""
        return sides + pixels.tobytes(), pixels
    try:
        content = segment.text.encode()
    except UnicodeEncodeError as error:
        raise RecordError("text is not UTF-8") from error
    tokens = tokenizer.encode(segment.text)
    if not len(tokens):
        raise RecordError("no tokens: the tokenizer leaves nothing of the text")
    return content, tokens


def _records(segments: list[Segment], raw: RawDocument, images: list[np.ndarray]) -> list[Record]:
    """One record; texts without images, those that bear a loss alike in one, in as many records as they take."""
    meta = dict(raw.meta) | {"key": raw.key}
    if images:
        return [Record(tuple(segments), meta)]
    texts = merged(segments)
    begins = range(0, sum(len(s.tokens) for s in texts if s.tokens is not None), PART)
    return [Record(tuple(_between(texts, begin, begin + PART)), {} if begin else meta) for begin in begins]


def _between(texts: list[Segment], begin: int, end: int) -> Iterator[Segment]:
    """Tokens `begin` to `end` of texts laid end to end."""
    at = 0
    for text in texts:
        assert text.tokens is not None
        part = text.tokens[max(begin - at, 0) : max(end - at, 0)]
        if len(part):
            yield Segment(part, text.loss)
        at += len(text.tokens)


class ShardWriter:
    """An ArrayRecord file that appears once it is complete; then its size and hash are known.

    Args:
        path: the file.
        options: those of ArrayRecord.
        belongs: see `record.belonging`.
    """

    def __init__(self, path: Place, options: str, belongs: str) -> None:
        self.records, self.size, self.sha256 = 0, 0, ""
        self._path, self._options, self._belongs = path, options, belongs
        self._stack = ExitStack()

    def write(self, data: bytes) -> None:
        """Adds a record, sealed."""
        self._file.write(sealed_record(data, self._belongs, self.records))
        self.records += 1

    def __enter__(self) -> ShardWriter:
        from array_record.python.array_record_module import ArrayRecordWriter

        self._partial = self._stack.enter_context(whole(self._path))
        self._file = ArrayRecordWriter(str(self._partial), self._options)
        return self

    def __exit__(self, *raised: Any) -> bool | None:
        self._file.close()
        if raised[0] is None:
            self.size, self.sha256 = self._partial.stat().st_size, sha256(self._partial)
        return self._stack.__exit__(*raised)
