"""JSON lines in a bucket. What grows is kept in parts, each put whole: the last one anew until it is large.

`gs://BUCKET/RUN/metrics.jsonl` names the parts `gs://BUCKET/RUN/metrics/00000.jsonl`, `00001.jsonl`, …, which hold
the lines in order.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from transfusion_jax.storage.atomic import check_own, write_whole
from transfusion_jax.storage.gcs import BucketPath, read_ranges

LARGE = 1 << 20  # characters of a part that is full
EVERY = 30.0  # seconds between two times that the same object is put

Record = dict[str, Any]


def part_paths(path: BucketPath) -> list[BucketPath]:
    """The parts that are there, in order."""
    return list(_folder(path).iterdir())


def read_parts(path: BucketPath) -> list[bytes]:
    """The content of each part."""
    return list(read_ranges([(part, None, None) for part in part_paths(path)]))


def line_of(record: Record) -> str:
    """A record as a line, with the CRC-32 of its JSON as a last value, `crc`, in hexadecimal."""
    text = json.dumps(record)
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}'


def records_of(lines: Iterable[bytes]) -> Iterator[Record | None]:
    """What each line holds; None where it is damaged. Former versions wrote no CRC: their lines come first."""
    crc_is_due = False
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # also bytes that are no UTF-8
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            yield None
            continue
        has_crc = record.pop("crc", None) is not None
        whole = line.decode() == line_of(record) if has_crc else not crc_is_due
        crc_is_due |= has_crc
        yield record if whole else None


def keep_parts(path: BucketPath, keep: Callable[[Record], bool]) -> None:
    """Cuts the lines back to those before the first one that is not to be kept; each of them must be a record.

    Killed midway, it leaves them cut back less far.
    """
    for part, text in reversed(list(zip(part_paths(path), read_parts(path), strict=True))):
        lines = text.decode().splitlines()
        kept = [line for line in lines if keep(json.loads(line))]
        if len(kept) == len(lines):
            return
        _put(part, kept)


def write_parts(path: BucketPath, records: Sequence[Record]) -> None:
    """Writes all lines; what was there goes first."""
    check_own(path)
    for part in reversed(part_paths(path)):
        part.unlink()
    lines = PartLines(path)
    for record in records:
        lines.append(record)
    lines.flush()


class PartLines:
    """Adds lines after those that are there; what is not put yet is, at the next one that is due or at `flush`."""

    def __init__(self, path: BucketPath):
        self._path, self._put_at, self._changed = path, 0.0, False
        parts = part_paths(path)
        self._number = max(len(parts) - 1, 0)
        self._lines = parts[-1].read_text().splitlines() if parts else []

    def append(self, record: Record, in_place_of_last: bool = False) -> None:
        """Adds a line, or puts it in the place of the newest one."""
        if in_place_of_last:
            self._lines.pop()
        elif sum(map(len, self._lines)) >= LARGE:
            self.flush()
            self._number, self._lines = self._number + 1, []
        self._lines.append(line_of(record))
        self._changed = True
        if time.monotonic() - self._put_at >= EVERY:
            self.flush()

    def flush(self) -> None:
        """Puts what has not been put."""
        if self._changed:
            _put(_folder(self._path) / f"{self._number:05d}.jsonl", self._lines)
            self._put_at, self._changed = time.monotonic(), False


def _folder(path: BucketPath) -> BucketPath:
    return path.parent / path.name.removesuffix(".jsonl")


def _put(part: BucketPath, lines: Sequence[str]) -> None:
    if lines:
        write_whole(part, "".join(line + "\n" for line in lines))
    else:
        check_own(part)
        part.unlink()
