"""Records of TensorBoard's event files: messages in protobuf's encoding, framed as TFRecord does.

Field numbers are those of TensorFlow's `event.proto` and `summary.proto`; only what a run writes is known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from google_crc32c import value as crc32c

from transfusion_jax.storage.atomic import DamagedFile

LENGTH, CHECKSUM, DOUBLE = (struct.Struct(code) for code in ("<Q", "<I", "<d"))
HEAD = LENGTH.size + CHECKSUM.size  # bytes of a record before its message
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's types of fields
SIZES = {FIXED64: 8, FIXED32: 4}

WALL_TIME, STEP, FILE_VERSION, SUMMARY, SESSION_LOG = 1, 2, 3, 5, 7  # fields of Event
VALUE = 1  # of Summary
TAG, SIMPLE_VALUE, IMAGE = 1, 2, 4  # of Summary.Value
HEIGHT, WIDTH, COLORSPACE, ENCODED = 1, 2, 3, 4  # of Summary.Image
STATUS, START = 1, 1  # of SessionLog, and a value of it
RGB = 3  # a colorspace


class EventKind(NamedTuple):
    """What a record is about."""

    step: int
    tags: frozenset[str]  # of its scalars and images
    is_head: bool  # it begins a file


def framed(message: bytes) -> bytes:
    """A message as a record: its length, a checksum, the message, a checksum."""
    length = LENGTH.pack(len(message))
    return length + _checksum(length) + message + _checksum(message)


def event(wall_time: float, step: int, content: bytes) -> bytes:
    """A message of a step: one of the contents below."""
    return _field(WALL_TIME, wall_time) + _field(STEP, int(step)) + content


def head() -> bytes:
    """The content that begins a file."""
    return _field(FILE_VERSION, b"brain.Event:2")


def session_start() -> bytes:
    """The content that makes a TensorBoard forget what it shows of this step and later ones."""
    return _field(SESSION_LOG, _field(STATUS, START))


def scalars(values: Mapping[str, float]) -> bytes:
    """The content of numbers by tag, kept as float32: too large ones as infinite."""
    with np.errstate(over="ignore"):
        packed = {tag: np.array(value, "<f4").tobytes() for tag, value in values.items()}
    numbers = (_field(TAG, tag.encode()) + _tag(SIMPLE_VALUE, FIXED32) + value for tag, value in packed.items())
    return _field(SUMMARY, b"".join(_field(VALUE, number) for number in numbers))


def image(tag: str, height: int, width: int, png: bytes) -> bytes:
    """The content of an RGB image, a PNG file."""
    size = _field(HEIGHT, height) + _field(WIDTH, width) + _field(COLORSPACE, RGB)
    value = _field(TAG, tag.encode()) + _field(IMAGE, size + _field(ENCODED, png))
    return _field(SUMMARY, _field(VALUE, value))


def read_events(data: bytes) -> Iterator[tuple[bytes, EventKind]]:
    """The records of a file with what they are about, up to one that is torn or damaged."""
    at = 0
    while at + HEAD <= len(data):
        (length,) = LENGTH.unpack_from(data, at)
        found = data[at : at + HEAD + length + CHECKSUM.size]
        message = found[HEAD : HEAD + length]
        if found != framed(message):
            return
        try:
            about = dict(_fields(message))
            values = [content for _, content in _fields(_bytes(about.get(SUMMARY, b"")))]
            tags = frozenset(_bytes(dict(_fields(_bytes(value))).get(TAG, b"")).decode() for value in values)
        except (DamagedFile, UnicodeDecodeError):
            return
        step = about.get(STEP, 0)
        yield found, EventKind(step if isinstance(step, int) else 0, tags, FILE_VERSION in about)
        at += len(found)


def _checksum(data: bytes) -> bytes:
    """TFRecord's masked CRC-32C."""
    crc = crc32c(data)
    return CHECKSUM.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def _field(number: int, value: float | bytes) -> bytes:
    """A number, text or message; a float as double."""
    if isinstance(value, int):
        return _tag(number, VARINT) + _varint(value)
    if isinstance(value, float):
        return _tag(number, FIXED64) + DOUBLE.pack(value)
    return _tag(number, BYTES) + _varint(len(value)) + value


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message by number.

    Raises:
        DamagedFile: it is no message.
    """
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _read_varint(message, at)
        elif kind in SIZES:
            size = SIZES[kind]
        else:
            raise DamagedFile(f"no message has a field of type {kind}")
        at += size
        if at > len(message):
            raise DamagedFile("a message ends within a field")
        yield number, message[at - size : at]


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, and the place after it."""
    value = shift = 0
    for byte in message[at:]:
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise DamagedFile("a message ends within a number")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise DamagedFile("a message has a number where bytes belong")
    return value
