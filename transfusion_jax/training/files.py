"""Files of JSON lines, whose last one may be torn. In a bucket they are in parts; see `parts`."""

from __future__ import annotations

import json
from typing import Any

from transfusion_jax.bucket import BucketPath
from transfusion_jax.errors import UserError
from transfusion_jax.files import append, write_whole
from transfusion_jax.storage import Place
from transfusion_jax.training import parts


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
        self._parts = parts.PartLines(path) if isinstance(path, BucketPath) else None

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
    append(path, json.dumps(values) + "\n")


def read_lines(path: Place) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where there is no file. A torn last line is left out.

    Raises:
        UserError: another line is not JSON.
    """
    if isinstance(path, BucketPath):
        text = "".join(parts.read_parts(path))
    else:
        text = path.read_text() if path.exists() else ""
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    try:
        return [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}): mend it, or move it away") from error


def write_lines(path: Place, records: list[dict[str, Any]]) -> None:
    """The inverse of `read_lines`; see `write_whole`. In a bucket, a kill midway leaves some of them."""
    if isinstance(path, BucketPath):
        parts.write_parts(path, records)
    else:
        write_whole(path, "".join(json.dumps(record) + "\n" for record in records))


def keep_until(path: Place, step: int) -> None:
    """Cuts a file of records back to those up to a step, and drops a half-written last line."""
    if isinstance(path, BucketPath):
        parts.keep_parts(path, lambda record: record["step"] <= step)
    elif path.exists():
        write_lines(path, [record for record in read_lines(path) if record["step"] <= step])
