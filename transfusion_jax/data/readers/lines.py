"""The records of JSON files in bytes: a line each, the values of one array, or objects of several lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from transfusion_jax.data.readers import files
from transfusion_jax.data.readers.raw import Fault, InputShard

HEAD = 1 << 12  # bytes that tell how a file is laid out
CHUNK = 1 << 20  # bytes that are looked at together, of a file that is not of lines
_MARKS = re.compile(rb'\\.|["\[\]{},]', re.DOTALL)  # what tells where a value ends

Places = Iterator[tuple[int, bytes | Fault]]


def is_spread(path: str) -> bool:
    """Whether a file called .json is one array, or its objects take several lines."""
    name = path.lower().removesuffix(".gz").removesuffix(".zst")
    if not name.endswith(".json"):
        return False
    with files.open_unpacked(path) as stream:
        try:
            head = files.read_some(stream, HEAD)
        except files.DAMAGE as error:  # reading it says what is wrong
            files.damage(error)
            return False
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].strip()
    return first.startswith(b"[") or first == b"{"


def records_of_shard(shard: InputShard) -> Places:
    """The records that begin within the shard's bytes, and where each begins."""
    if not shard.end and is_spread(shard.path):
        return _values(shard.path)
    return _lines(shard)


def _lines(shard: InputShard) -> Places:
    with files.open_unpacked(shard.path) as stream:
        offset = shard.begin
        if offset:  # the line that holds the byte before belongs to the range before
            stream.seek(offset - 1)
            offset += _skip(stream) - 1
        while not shard.end or offset < shard.end:
            try:
                line = stream.readline(files.LARGEST)
                length = len(line)
                if length == files.LARGEST and not line.endswith(b"\n"):
                    length += _skip(stream)
            except files.DAMAGE as error:
                yield offset, Fault(f"@{offset}", f"broken file: {files.damage(error)}")
                return
            if not line:
                return
            yield offset, line if length == len(line) else Fault(f"@{offset}", "line too long")
            offset += length


def _skip(stream: IO[bytes]) -> int:
    """Passes the rest of a line; its bytes."""
    length = 0
    while part := stream.readline(1 << 20):
        length += len(part)
        if part.endswith(b"\n"):
            break
    return length


def _values(path: str) -> Places:
    """The values of an array, or those that follow each other; only the one that is read is in memory."""
    value: list[bytes] = []
    begin, size, ended, reason = 0, 0, False, "the array has no end"
    with files.open_unpacked(path) as stream:
        try:
            for offset, part, mark in _parts(stream):
                if not size:
                    begin = offset + len(part) - len(part.lstrip())
                    part = part.lstrip()
                size += len(part)
                if size <= files.LARGEST:
                    value.append(part)
                if not mark:
                    continue
                if size and (ended or mark != b"["):  # before the first array stands a mark of Windows at most
                    whole = b"".join(value)
                    yield begin, whole if len(whole) == size else Fault(f"@{begin}", "value too long")
                value, size, ended = [], 0, mark in b"]}"
            if ended and not size:
                return
            reason = "what follows is no whole value" if ended else reason
        except files.DAMAGE as error:
            reason = files.damage(error)
    yield begin, Fault(f"@{begin}", f"broken file: {reason}")


def _parts(stream: IO[bytes]) -> Iterator[tuple[int, bytes, bytes]]:
    """What values are made of: where each part begins, its bytes, and the mark that ends its value, if one does.

    Marks are the bracket that begins the array, commas between its values, and the bracket that ends it. Without an
    array, a value ends with its own bracket, and that is the mark.
    """
    depth, quoted, base, rest, within = 0, False, 0, b"", None
    while chunk := files.read_some(stream, CHUNK):
        data = rest + chunk
        end = len(data) - (len(data) - len(data.rstrip(b"\\"))) % 2  # a backslash is read with what follows it
        begin = 0
        for found in _MARKS.finditer(data, 0, end):
            mark = found[0]
            if mark == b'"':
                quoted = not quoted
            if quoted or mark[0] in b'"\\':
                continue
            within = mark == b"[" if within is None else within
            depth += (mark in b"[{") - (mark in b"]}")
            if within and depth <= 1 and mark in (b"[{," if depth == 1 else b"]}"):
                yield base + begin, data[begin : found.start()], mark
                begin = found.end()
            elif not within and depth == 0 and mark in b"]}":
                yield base + begin, data[begin : found.end()], mark
                begin = found.end()
        yield base + begin, data[begin:end], b""
        base, rest = base + end, data[end:]
