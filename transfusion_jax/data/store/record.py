"""One document as the bytes of a record: its texts as token ids, the places of its images, and what else is kept.

Little-endian: the number of segments; per segment, kind and loss, and its tokens; the ids; JSON to the end.
Ids take two bytes where the tokenizer has no more than 65,536 entries, four otherwise.

Images are their values, one after the other; where their shapes may differ, their number and shapes stand before
them, in two bytes each.

A stored record, of a document or of images, ends in a checksum of its bytes and of where they belong.
"""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CHECKSUM = 4  # bytes
IMAGE, LOSS = 1, 2  # bits of a segment's first number


@dataclass(frozen=True)
class Segment:
    """A text, or the place of an image, whose encodings are stored beside the document."""

    tokens: np.ndarray | None  # [n] integers; None: an image
    loss: bool = True


@dataclass(frozen=True)
class Record:
    """A stored document."""

    segments: Sequence[Segment]
    meta: Mapping[str, Any] = field(default_factory=dict)  # JSON values


def merged(texts: Iterable[Segment]) -> list[Segment]:
    """Texts of which neighbours that bear a loss alike are one."""
    return [
        Segment(np.concatenate([s.tokens for s in alike if s.tokens is not None]), loss)
        for loss, alike in itertools.groupby(texts, lambda segment: segment.loss)
    ]


class DamagedRecord(Exception):
    """Bytes that are not a record, or one that belongs elsewhere."""


def belonging(kind: str, codec: str, origin: str, shard: int) -> str:
    """What the records of a file have in common: kind, codec's hash, input, number of the shard."""
    return f"{kind} {codec} {origin} {shard}"


def sealed_record(data: bytes, belongs: str, number: int) -> bytes:
    """The bytes of a record with their checksum, as the record of this number in its file."""
    return data + _checksum(data, belongs, number)


def unseal(data: bytes, belongs: str, number: int) -> bytes:
    """The inverse of `sealed_record`.

    Raises:
        DamagedRecord: other bytes were sealed, or under another name.
    """
    content = data[:-CHECKSUM]
    if data[-CHECKSUM:] != _checksum(content, belongs, number):
        raise DamagedRecord(f"record {number} is not what was written")
    return content


def token_type(vocabulary: int) -> np.dtype[Any]:
    """How the ids of a tokenizer with so many entries are stored."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


def pack(record: Record, dtype: np.dtype[Any]) -> bytes:
    """The bytes of a record, with ids of the given type."""
    texts = [np.zeros(0) if s.tokens is None else s.tokens for s in record.segments]
    header = [len(texts)]
    for segment, tokens in zip(record.segments, texts, strict=True):
        header += [IMAGE * (segment.tokens is None) + LOSS * segment.loss, len(tokens)]
    parts = [np.array(header, "<u4"), *(tokens.astype(dtype) for tokens in texts)]
    meta = json.dumps(dict(record.meta), ensure_ascii=False, sort_keys=True).encode() if record.meta else b""
    return b"".join([*(part.tobytes() for part in parts), meta])


def unpack(data: bytes, dtype: np.dtype[Any]) -> Record:
    """The inverse of `pack`; ids are int32."""
    count = int(np.frombuffer(data, "<u4", 1)[0])
    header = np.frombuffer(data, "<u4", 2 * count, 4).reshape(count, 2)
    at = 4 + 8 * count
    segments = []
    for bits, length in header.tolist():
        tokens = np.frombuffer(data, dtype, length, at).astype(np.int32)
        segments.append(Segment(None if bits & IMAGE else tokens, bool(bits & LOSS)))
        at += length * dtype.itemsize
    return Record(tuple(segments), json.loads(data[at:]) if len(data) > at else {})


def pack_images(images: Sequence[np.ndarray], of_one_shape: bool) -> bytes:
    """The bytes of a record of images, `[h, w, c]` or `[h, w]` each."""
    shapes = [len(images), *(side for image in images for side in image.shape[:2])]
    header = b"" if of_one_shape else np.array(shapes, "<u2").tobytes()
    return header + b"".join(image.tobytes() for image in images)


def unpack_images(data: bytes, dtype: np.dtype[Any], shape: Sequence[int]) -> list[np.ndarray]:
    """The inverse of `pack_images`; the shape of every image, or one whose height and width are 0.

    Raises:
        ValueError: the bytes are no such images.
    """
    if shape[0]:
        return list(np.frombuffer(data, dtype).reshape(-1, *shape))
    count, images = int.from_bytes(data[:2], "little"), []
    at = 2 + 4 * count
    try:
        for height, width in struct.iter_unpack("<2H", data[2:at]):
            images.append(np.ndarray((height, width, *shape[2:]), dtype, data, at))
            at += images[-1].nbytes
    except (struct.error, TypeError) as error:
        raise ValueError(f"{count} images take more than {len(data)} bytes") from error
    if at != len(data):
        raise ValueError(f"{count} images take {at} bytes, not {len(data)}")
    return images


def _checksum(data: bytes, belongs: str, number: int) -> bytes:
    return zlib.crc32(data, zlib.crc32(f"{belongs} {number}".encode())).to_bytes(CHECKSUM, "little")
