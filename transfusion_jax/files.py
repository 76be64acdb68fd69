"""Files that are written whole or not at all, and checked when they are read.

Everything that a command leaves behind is written by these functions: a kill or a full disk leaves the file that
was there before, or none. What killed processes leave ends in `UNFINISHED`, and is removed by `sweep`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transfusion_jax.bucket import BucketPath
from transfusion_jax.errors import StorageError, UserError
from transfusion_jax.storage import Place, put

DIGEST = "digest"  # the key of a JSON file that holds a hash of all the others
UNFINISHED = ".tmp"  # the end of a file's name until it is whole
_claims: list[tuple[str, Callable[[], None]]] = []


class DamagedFile(UserError):
    """A file that is not what was written."""


class LostFolder(StorageError):
    """A folder that was moved, replaced or deleted while this process wrote there."""


@contextmanager
def claimed(folder: Place, check: Callable[[], None]) -> Iterator[None]:
    """While the context lasts, whatever this process writes below a folder is preceded by a check.

    Args:
        folder: the folder.
        check: raises LostFolder where the folder is no longer this process's own.
    """
    claim = f"{folder.absolute()}/", check
    _claims.append(claim)
    try:
        yield
    finally:
        _claims.remove(claim)


def check_own(path: Place) -> None:
    """Returns where a path may be written, as every function here asks before it writes.

    Raises:
        LostFolder: it lies in a folder that was claimed and is now another's.
    """
    for folder, check in list(_claims):
        if f"{path.absolute()}/".startswith(folder):
            check()


def write_whole(path: Place, content: str | bytes) -> None:
    """Puts a file in place at once, and makes its folder: a reader sees the old one or the new one.

    Raises:
        StorageError: it cannot be written; the old one is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    if isinstance(path, BucketPath):
        check_own(path)
        path.write_bytes(data)
        return
    with whole(path) as beside, _writing(path):
        beside.write_bytes(data)


@contextmanager
def whole(path: Place) -> Iterator[Path]:
    """The name of a local file to write, which stands in its place once the context ends well.

    Raises:
        StorageError: it cannot be put there; what was there before is as it was.
    """
    check_own(path)
    at = path.resolve() if isinstance(path, Path) else path  # what a link names is written, and the link stays
    with _temporary(at) as beside:
        with _writing(path):
            at.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        if beside != at:
            with _writing(path):
                sync(beside)  # or a power loss could leave an empty file
                check_own(path)
                put(beside, at)


def append(path: Path, text: str) -> None:
    """Adds text to a local file; a kill may leave a part of it.

    Raises:
        StorageError: it cannot be written.
    """
    check_own(path)
    with _writing(path), path.open("a") as file:
        file.write(text)


def sync(path: Path) -> None:
    """Returns once a file, or the names in a folder, would outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Place) -> None:
    """Removes what processes of this machine that are no more left half-written below a local folder."""
    if not isinstance(folder, Path) or not folder.is_dir():
        return
    temporary = re.compile(rf"\.{re.escape(socket.gethostname())}-(\d+)-\d+{re.escape(UNFINISHED)}$")
    for path in folder.rglob(f"*{UNFINISHED}"):
        found = temporary.search(path.name)
        if found and not _runs(int(found[1])):
            path.unlink(missing_ok=True)


def write_json(path: Place, values: dict[str, Any], indent: int | None = None) -> None:
    """Writes an object whole, with a hash of it, which `read_json` compares.

    Raises:
        StorageError: it cannot be written.
    """
    text = json.dumps(values | {DIGEST: _digest(values)}, indent=indent, ensure_ascii=False)
    write_whole(path, text + "\n")


def read_json(path: Place, remedy: str) -> dict[str, Any]:
    """The object that `write_json` wrote, or one without a hash, as former versions did.

    Args:
        path: the file.
        remedy: what to do where it is damaged, for the error.

    Raises:
        FileNotFoundError: it is not there.
        DamagedFile: it holds something else.
    """
    return parse_json(path.read_bytes(), path, remedy)


def parse_json(data: bytes, path: Place, remedy: str) -> dict[str, Any]:
    """See `read_json`; of a file that has been read."""
    try:
        values = json.loads(data)
    except ValueError as error:  # also bytes that are no UTF-8
        raise DamagedFile(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(values, dict):
        raise DamagedFile(f"{path} is damaged (it holds no object): {remedy}")
    if values.pop(DIGEST, None) not in (None, _digest(values)):
        raise DamagedFile(f"{path} is damaged (its hash is not that of its content): {remedy}")
    return values


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(json.loads(json.dumps(values)), sort_keys=True).encode()).hexdigest()


@contextmanager
def _writing(path: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _temporary(path: Place) -> Iterator[Path]:
    """A name beside a local file, of this thread's alone; on a disk of this machine, of an object in a bucket."""
    if isinstance(path, BucketPath):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch) / path.name
        return
    if path.exists() and not path.is_file():  # such as a pipe
        yield path
        return
    beside = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}{UNFINISHED}")
    try:
        yield beside
    finally:
        with suppress(OSError):  # it is in place by now, or what hindered it has been raised
            beside.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process of this machine runs, or may; one that has ended and waits for its parent does not."""
    try:
        os.kill(process, 0)
        stat = Path(f"/proc/{process}/stat").read_text()  # of Linux alone
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"
