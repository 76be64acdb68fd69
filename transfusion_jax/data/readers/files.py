"""Files by path or by URL of a bucket."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers.format import package
from transfusion_jax.storage.paths import place

BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}  # the package that reads each
LARGEST = 1 << 28  # bytes of one record; a larger one is a fault, so that damage cannot fill the memory
AHEAD = 1 << 23  # bytes that one request to a bucket asks for: archives are read in small pieces
DAMAGE = (OSError, EOFError, zlib.error)  # what reading damaged data raises; `damage` tells it from a failing disk


def is_url(path: str) -> bool:
    """Whether a path names a bucket, or any other place with a scheme."""
    return "://" in path


def open_file(path: str) -> IO[bytes]:
    """The file's bytes, seekable."""
    system, name = _system(path)
    ahead = {"block_size": AHEAD, "cache_type": "readahead"} if is_url(path) else {}
    opened: IO[bytes] = system.open(name, "rb", **ahead)
    return opened


@contextmanager
def open_unpacked(path: str) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed where its name ends in .gz, .tgz or .zst; not seekable then."""
    with open_file(path) as file:
        if path.lower().endswith((".gz", ".tgz")):
            yield io.BufferedReader(gzip.GzipFile(fileobj=file))
        elif path.lower().endswith(".zst"):
            arrow = package("pyarrow", "transfusion-jax[prepare]")
            yield io.BufferedReader(arrow.CompressedInputStream(arrow.PythonFile(file, mode="r"), "zstd"))
        else:
            yield file


def check_reachable(path: str) -> None:
    """Returns where the bucket of a path answers; fsspec takes one that does not for an empty one.

    Raises:
        StorageError: it does not, or refuses.
    """
    if path.startswith("gs://"):
        place("/".join(path.split("/")[:3])).exists()


def size(path: str) -> int:
    """The file's bytes."""
    system, name = _system(path)
    return int(system.size(name))


def is_folder(path: str) -> bool:
    """Whether the path is a folder."""
    system, name = _system(path)
    return bool(system.isdir(name))


def exists(path: str) -> bool:
    """Whether there is a file or a folder at the path."""
    system, name = _system(path)
    return bool(system.exists(name))


def matches(pattern: str) -> list[str]:
    """The files that a pattern such as `a/*.tar` matches, sorted."""
    system, name = _system(pattern)
    try:
        return sorted(system.unstrip_protocol(n) if is_url(pattern) else n for n in system.glob(name))
    except FileNotFoundError:  # gcsfs's, where there is no bucket
        return []


def inside(folder: str) -> list[str]:
    """Every file below a folder by its path within it, sorted."""
    system, name = _system(folder)
    root = system._strip_protocol(name).rstrip("/") + "/"
    return sorted(n.removeprefix(root) for n in system.find(name))


def join(folder: str, name: str) -> str:
    """The path of a name below a folder; a name that is absolute, or a URL, stays as it is."""
    if is_url(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def folder_of(path: str) -> str:
    """The folder that a file lies in."""
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path)


def damage(error: BaseException) -> str:
    """What is damaged, for a fault's reason. Errors that are not the data's own are raised again."""
    if isinstance(error, OSError) and (error.errno is not None or type(error) not in (OSError, gzip.BadGzipFile)):
        raise error
    return " ".join(str(error).split()) or type(error).__name__


def _system(path: str) -> tuple[Any, str]:
    if not is_url(path):
        return LocalFileSystem(), path
    scheme = path.partition("://")[0]
    if "STORAGE_EMULATOR_HOST" in os.environ:  # emulators do not answer gcsfs's question for a bucket's kind
        fsspec.register_implementation("gs", "gcsfs.core.GCSFileSystem", clobber=True)
    try:
        system, name = fsspec.core.url_to_fs(path)
    except ImportError as error:
        needed = BUCKETS.get(scheme, scheme)
        raise ConfigError(f"{scheme}:// needs a package that is missing: pip install {needed}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {scheme}:// is not known; use a local path, gs:// or s3://") from error
    return system, name
