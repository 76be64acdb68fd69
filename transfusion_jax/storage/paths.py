"""Places where workdirs and prepared data are kept: folders, or buckets as `gs://BUCKET/FOLDER`."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transfusion_jax.errors import UserError
from transfusion_jax.storage.gcs import AT_ONCE, BucketPath, read_ranges

Place = Path | BucketPath
BUCKETS = "gs"


def place(name: str | Place) -> Place:
    """The place of that name.

    Raises:
        UserError: it has another scheme, or names no bucket.
    """
    if isinstance(name, Path | BucketPath):
        return name
    scheme, separator, rest = name.partition(":")
    if scheme == BUCKETS and separator:
        key = "/".join(part for part in rest.removeprefix("//").split("/") if part)
        if not rest.startswith("//") or not key:
            raise UserError(f"{name} names no bucket: write gs://BUCKET/FOLDER")
        return BucketPath(key)
    if rest.startswith("//"):
        raise UserError(f"{name}: {scheme}:// cannot be used here; give a local path or gs://BUCKET/FOLDER")
    return Path(name)


def remove(folder: Place) -> None:
    """Deletes a folder and all that it holds."""
    if isinstance(folder, BucketPath):
        folder.remove()
    else:
        shutil.rmtree(folder)


def file_sizes(folder: Place) -> dict[str, int]:
    """The bytes of every file below a folder, by its path within."""
    if isinstance(folder, BucketPath):
        return folder.sizes()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def size_of(path: Place) -> int:
    """The bytes of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    return path.size() if isinstance(path, BucketPath) else path.stat().st_size


def version_of(path: Place) -> object | None:
    """A value that changes when a file is written or replaced; None without a file."""
    if isinstance(path, BucketPath):
        return path.version()
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def within(path: Place, folder: Place) -> str:
    """The path of something in a folder, seen from there."""
    return str(path).removeprefix(f"{folder}/")


def read_all(paths: Sequence[Place]) -> Iterator[bytes]:
    """The bytes of many files of one kind, in order; those of a bucket are read many at a time."""
    for begin in range(0, len(paths), AT_ONCE):
        some = paths[begin : begin + AT_ONCE]
        remote = [(path, None, None) for path in some if isinstance(path, BucketPath)]
        yield from read_ranges(remote) if remote else (path.read_bytes() for path in some)


def put(file: Path, at: Place) -> None:
    """Brings a local file to its place, where it appears whole; it is not left where it was."""
    if isinstance(at, BucketPath):
        at.upload(file)
        file.unlink()
    else:
        file.rename(at)


@contextmanager
def on_disk(path: Place) -> Iterator[Path]:
    """The file as a local one, while the context lasts."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield path.download(Path(scratch) / path.name)


def sha256(path: Place) -> str:
    """The hash of a file's bytes."""
    with on_disk(path) as local, local.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def for_orbax(path: Place) -> Any:
    """The path as Orbax takes it. It reaches buckets through fsspec as well, without TensorFlow."""
    if isinstance(path, Path):
        return path
    import fsspec
    from etils import epath

    os.environ.setdefault("EPATH_USE_TF", "false")
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.Path(str(path))
