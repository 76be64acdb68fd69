"""Files that are written atomically, and verified when they are read.

All output of commands is written by these functions: a kill or a full disk leaves the file that was there before,
or none. Leftovers of killed processes end in `UNFINISHED`, and `sweep_unfinished` removes them.
"""

from __future__ import annotations

import fcntl
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

from transfusion_jax.errors import STEERING, StorageError, UserError, require
from transfusion_jax.storage.forms import misfit
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.paths import Place, put

DIGEST = "digest"  # the key of a JSON file that holds a hash of all the others
UNFINISHED = ".tmp"  # the end of a file's name until it is whole
_claims: list[tuple[str, Callable[[], None]]] = []


class DamagedFile(UserError):
    """A file that is not what was written."""


class LostFolder(StorageError):
    """A folder that was moved, replaced or deleted while this process wrote there."""


@contextmanager
def claimed(folder: Place, check: Callable[[], None]) -> Iterator[None]:
    """While the context lasts, a check precedes every write of this process below a folder.

    Args:
        folder: the folder.
        check: raises LostFolder where the folder no longer belongs to this process.
    """
    claim = f"{folder.absolute()}/", check
    _claims.append(claim)
    try:
        yield
    finally:
        _claims.remove(claim)


def check_own(path: Place) -> None:
    """Returns if a path may be written; every function here calls it before it writes.

    Raises:
        LostFolder: it lies in a claimed folder that now belongs to another.
    """
    for folder, check in list(_claims):
        if f"{path.absolute()}/".startswith(folder):
            check()


def check_writable(folder: Place) -> None:
    """Returns once a folder, or the one that it would be made in, has been written to; nothing stays there.

    Raises:
        ConfigError: what it would be made in is a file.
        StorageError: it cannot be written to.
    """
    if isinstance(folder, BucketPath):
        probe = folder / f"probe-{socket.gethostname()}-{os.getpid()}"
        probe.write_bytes(b"probe")
        probe.unlink()
        return
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        require(there.is_dir(), f"{there} is a file: nothing can be written to {folder}")
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"probe")
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from error


def write_whole(path: Place, content: str | bytes) -> None:
    """Writes a file atomically, and makes its folder: a reader sees the old file or the new one.

    Raises:
        StorageError: it cannot be written; the old file is unchanged.
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
    """A temporary local file to write, which replaces a file once the context ends without an error.

    Raises:
        StorageError: it cannot be put there; the old file is unchanged.
    """
    check_own(path)
    at = path.resolve() if isinstance(path, Path) else path  # the target of a link is written, and the link stays
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


@contextmanager
def locked(folder: Place) -> Iterator[None]:
    """While this lasts, no other process of this machine is in this context of a folder.

    In a bucket, and on file systems that lock no folder, others may be.
    """
    if isinstance(folder, BucketPath):
        yield
        return
    check_own(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Returns once a file, or the names in a folder, would outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_unfinished(folder: Place) -> None:
    """Removes unfinished files below a local folder that ended processes of this machine left."""
    if not isinstance(folder, Path) or not folder.is_dir():
        return
    temporary = re.compile(rf"\.{re.escape(socket.gethostname())}-(\d+)-\d+{re.escape(UNFINISHED)}$")
    for path in folder.rglob(f"*{UNFINISHED}"):
        found = temporary.search(path.name)
        if found and not _runs(int(found[1])):
            path.unlink(missing_ok=True)


def write_json(path: Place, values: dict[str, Any], indent: int | None = None) -> None:
    """Writes an object atomically, with a hash of it, which `read_json` verifies.

    Raises:
        StorageError: it cannot be written.
    """
    write_whole(path, json_text(values | {DIGEST: _digest(values)}, indent) + "\n")


def json_text(values: dict[str, Any], indent: int | None = None) -> str:
    """An object as JSON that UTF-8 can hold and that a terminal can show, whatever stands in it."""
    return STEERING.sub(lambda c: f"\\u{ord(c[0]):04x}", json.dumps(values, indent=indent, ensure_ascii=False))


def read_json(path: Place, remedy: str, form: Any = dict) -> dict[str, Any]:
    """The object that `write_json` wrote, or one without a hash, as former versions did.

    Args:
        path: the file.
        remedy: how to repair it, for the error.
        form: what a reader needs of it; see `forms`.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is not what was written, or does not fit the form.
    """
    return parse_json(path.read_bytes(), path, remedy, form)


def parse_json(data: bytes, path: Place, remedy: str, form: Any = dict) -> dict[str, Any]:
    """As `read_json`, for a file's bytes."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise DamagedFile(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(values, dict):
        raise DamagedFile(f"{path} is damaged (it is not a JSON object): {remedy}")
    if values.pop(DIGEST, None) not in (None, _digest(values)):
        raise DamagedFile(f"{path} is damaged (its hash does not match its content): {remedy}")
    if wrong := misfit(values, form):
        raise DamagedFile(f"{path} is damaged, or of another program ({wrong}): {remedy}")
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
    """A temporary name beside a local file, unique to this thread; for an object in a bucket, on the local disk."""
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
        with suppress(OSError):  # it is in place by now, or an error has been raised
            beside.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process of this machine runs, or may run; a zombie does not."""
    try:
        os.kill(process, 0)
        stat = Path(f"/proc/{process}/stat").read_text()  # of Linux alone
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"
