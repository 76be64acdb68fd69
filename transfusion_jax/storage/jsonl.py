"""Files of JSON lines, each a record of a step; the last may be torn. In a bucket they have parts: see `parts`."""

from __future__ import annotations

from typing import Any

from transfusion_jax.errors import some
from transfusion_jax.storage import jsonl_segments
from transfusion_jax.storage.atomic import DamagedFile, append, write_whole
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.paths import Place


def free_path(folder: Place, name: str) -> Place:
    """The first of `name-1`, `name-2`, … that is not in the folder."""
    number = 1
    while (path := folder / f"{name}-{number}").exists():
        number += 1
    return path


class Lines:
    """Adds JSON objects to a file of lines, one at a time.

    Its functions raise StorageError where they cannot write.
    """

    def __init__(self, path: Place):
        self._path = path
        self._parts = jsonl_segments.PartLines(path) if isinstance(path, BucketPath) else None

    def append(self, values: dict[str, Any], in_place_of_last: bool = False) -> None:
        """Adds one, or puts it in the place of the newest one; in a bucket, a reader sees it a little later."""
        if self._parts:
            self._parts.append(values, in_place_of_last)
        elif in_place_of_last:
            write_lines(self._path, [*read_lines(self._path)[:-1], values])
        else:
            append_line(self._path, values)

    def flush(self) -> None:
        """Returns once everything can be read."""
        if self._parts:
            self._parts.flush()


def append_line(path: Place, values: dict[str, Any]) -> None:
    """Adds one JSON object as a line to a local file.

    Raises:
        StorageError: it cannot be written.
    """
    assert not isinstance(path, BucketPath)
    append(path, jsonl_segments.line_of(values) + "\n")


def read_lines(path: Place) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none where there is no file. What is no record is left out."""
    return [record for record in jsonl_segments.records_of(_whole_lines(path)) if record is not None]


def check_lines(path: Place) -> None:
    """Returns where each line of a file is a record; the last one may be torn.

    Raises:
        DamagedFile: others are not.
    """
    wrong = [
        number for number, record in enumerate(jsonl_segments.records_of(_whole_lines(path)), 1) if record is None
    ]
    if wrong:
        raise DamagedFile(
            f"{path} is damaged (line {some(wrong)}): the run leaves that out when it goes on, and keeps the file "
            "as it was in aside/"
        )


def _whole_lines(path: Place) -> list[bytes]:
    return _bytes(path).split(b"\n")[:-1]


def _bytes(path: Place) -> bytes:
    if isinstance(path, BucketPath):
        return b"".join(jsonl_segments.read_parts(path))
    return path.read_bytes() if path.exists() else b""


def write_lines(path: Place, records: list[dict[str, Any]]) -> None:
    """The inverse of `read_lines`; see `write_whole`. In a bucket, a kill midway leaves some of them."""
    if isinstance(path, BucketPath):
        jsonl_segments.write_parts(path, records)
    else:
        write_whole(path, "".join(jsonl_segments.line_of(record) + "\n" for record in records))


def keep_until(path: Place, step: int, aside: Place) -> Place | None:
    """Cuts a file of records back to those up to a step, and drops a half-written last line.

    Args:
        path: the file.
        step: the last to be kept.
        aside: a folder, which gets the file as it was where lines of it are damaged.

    Returns where that is; None where all was well.
    """
    try:
        check_lines(path)
        kept = None
    except DamagedFile:
        kept = free_path(aside, "damaged") / path.name
        write_whole(kept, _bytes(path))
    if isinstance(path, BucketPath) and not kept:
        jsonl_segments.keep_parts(path, lambda record: record["step"] <= step)
    elif kept or path.exists():
        write_lines(path, [record for record in read_lines(path) if record["step"] <= step])
    return kept
