"""Single records of ArrayRecord files in a bucket, each by one request for its bytes.

array_record's own reader opens local files alone. What is written with `group_size:1` is easily read without it:
the end of a file says where each record's chunk begins, and a chunk holds one record, plain or in Zstandard.

Layout: https://github.com/google/array_record/blob/main/cpp/layout.proto and
https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transfusion_jax.config import ConfigError
from transfusion_jax.data.store.record import DamagedRecord
from transfusion_jax.storage.gcs import BucketPath, read_ranges

BLOCK, BLOCK_HEADER = 1 << 16, 24  # bytes; every block begins with a header that interrupts what stands there
HEADER = struct.Struct("<8x Q 8x Q Q")  # of a chunk: size of its data; kind and records; size of the records
SIMPLE, PLAIN, ZSTANDARD = ord("r"), 0, ord("z")
MAGIC = 0x71930E704FDAE05E
TAIL = 1 << 18  # bytes that are read of a file's end at first: enough for some thousand records


def places(files: Sequence[tuple[BucketPath, int]]) -> Iterator[tuple[np.ndarray, int]]:
    """Where the records of each file begin, `[records]` int64, and where the last one ends.

    Args:
        files: paths and sizes.

    Raises:
        DamagedRecord: a file does not end as ArrayRecord files do.
    """
    tails = read_ranges([(path, max(size - TAIL, 0), size) for path, size in files])
    for (path, size), tail in zip(files, tails, strict=True):
        try:
            postscript = _message(records_of_chunk(tail[-BLOCK:], size - BLOCK)[0])
            footer = postscript[1]
            if postscript.get(2) != MAGIC or size % BLOCK:
                raise DamagedRecord("no such file's end")
            if footer < size - len(tail):
                tail = path.read_bytes(footer, size)
            _, *chunks = map(_message, records_of_chunk(tail[footer - (size - len(tail)) : -BLOCK], footer))
            if any(chunk.get(3, 0) != 1 for chunk in chunks):
                raise DamagedRecord("more than one record in a group")
        except (struct.error, LookupError, DamagedRecord) as error:
            raise DamagedRecord(f"{path} is damaged: {error}") from error
        yield np.array([chunk.get(1, 0) for chunk in chunks], np.int64), footer


def records_of_chunk(data: bytes, begin: int) -> list[bytes]:
    """The records of the chunk that begins a stretch of a file; `begin` is where it stands in the file.

    Raises:
        DamagedRecord: there is no whole chunk of records.
    """
    whole = _without_block_headers(data, begin)
    if len(whole) < HEADER.size:
        raise DamagedRecord("cut short")
    size, kind, records_size = HEADER.unpack_from(whole)
    if kind & 0xFF != SIMPLE or len(whole) < HEADER.size + size or not size:
        raise DamagedRecord("not a chunk of records")
    content = memoryview(whole)[HEADER.size : HEADER.size + size]
    compression, (sizes_size, at) = content[0], _varint(content, 1)
    sizes = _expanded(content[at : at + sizes_size], compression)
    values = _expanded(content[at + sizes_size :], compression)
    found, end, place = [], 0, 0
    for _ in range(kind >> 8):
        length, place = _varint(sizes, place)
        found.append(bytes(values[end : end + length]))
        end += length
    if end != len(values) or end != records_size:
        raise DamagedRecord("sizes that do not fit")
    return found


def _without_block_headers(data: bytes, begin: int) -> bytes:
    end, parts, at = begin + len(data), [], begin
    while at < end:
        block = at - at % BLOCK
        parts.append(data[max(at, block + BLOCK_HEADER) - begin : block + BLOCK - begin])
        at = block + BLOCK
    return b"".join(parts)


def _expanded(data: memoryview, compression: int) -> memoryview:
    if compression == PLAIN:
        return data
    if compression != ZSTANDARD:
        raise DamagedRecord("a compression that prepare does not write")
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError("gs:// needs a package that is missing: pip install 'transfusion-jax[gcs]'") from error
    size, at = _varint(data, 0)
    try:
        return memoryview(zstandard.ZstdDecompressor().decompress(data[at:], max_output_size=size) if size else b"")
    except zstandard.ZstdError as error:
        raise DamagedRecord(str(error)) from error


def _message(data: bytes) -> dict[int, Any]:
    """Numbers of a Protocol Buffers message by field; of others it says nothing."""
    found, at = {}, 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _varint(data, at)
        if tag & 7 == 2:
            at += value
        else:
            found[tag >> 3] = value
    return found


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
