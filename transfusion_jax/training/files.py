"""Small files that are written whole or not at all, and files of JSON lines whose last one may be torn."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transfusion_jax.errors import StorageError, UserError


def write_whole(path: Path, text: str) -> None:
    """Puts a file in place at once: a reader sees the old one or the new one.

    Raises:
        StorageError: it cannot be written; the old one is as it was.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power loss could leave an empty file
        beside.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def free_path(folder: Path, name: str) -> Path:
    """The first of `name-1`, `name-2`, … that is not in the folder."""
    number = 1
    while (path := folder / f"{name}-{number}").exists():
        number += 1
    return path


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Adds one JSON object as a line.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        with path.open("a") as lines:
            lines.write(json.dumps(values) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where there is no file. A torn last line is left out.

    Raises:
        UserError: another line is not JSON.
    """
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    try:
        return [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}): mend it, or move it away") from error


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """The inverse of `read_lines`; see `write_whole`."""
    write_whole(path, "".join(json.dumps(record) + "\n" for record in records))
