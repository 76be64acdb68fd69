"""Objects of a Google Cloud Storage bucket by path, with the words of pathlib.

Objects are put whole, and cannot be appended to or renamed; a folder is what its objects' names have in common.
Requests that fail for a while are made again until a deadline: a short one at first, so that a wrong path or a
missing network is said soon, and a long one for buckets that have answered before.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from transfusion_jax.errors import ConfigError, StorageError

FIRST, LATER = 15.0, 300.0  # seconds until a request is given up: the first ones to a bucket, and later ones
AT_ONCE = 32  # requests under way together, where there are many to make
_answered: set[str] = set()  # buckets that have

logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs each error that it raises with its traceback


@dataclass(frozen=True, order=True)
class BucketPath:
    """`gs://key`. Its functions raise StorageError where the bucket cannot be used, and OSError as pathlib's do."""

    key: str  # BUCKET/NAME

    def __str__(self) -> str:
        return f"gs://{self.key}"

    def __truediv__(self, name: str) -> BucketPath:
        return BucketPath(f"{self.key}/{name}")

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        """What stands after the last slash."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> BucketPath:
        """What stands before it."""
        return BucketPath(self.key.rpartition("/")[0])

    @property
    def suffix(self) -> str:
        """The last of `suffixes`."""
        return PurePosixPath(self.name).suffix

    @property
    def suffixes(self) -> list[str]:
        """The endings of the name, such as `.json`."""
        return PurePosixPath(self.name).suffixes

    def with_name(self, name: str) -> BucketPath:
        """Another name in the same folder."""
        return self.parent / name

    def absolute(self) -> BucketPath:
        """Itself."""
        return self

    def relative_to(self, folder: BucketPath) -> PurePosixPath:
        """The path within a folder."""
        return PurePosixPath(self.key).relative_to(folder.key)

    def exists(self) -> bool:
        """Whether there is such an object, or one below."""
        return self._info() is not None

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return (self._info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """Whether there are objects below."""
        return (self._info() or {}).get("type") == "directory"

    def iterdir(self) -> Iterator[BucketPath]:
        """The objects and folders in this folder, in order; none where there is none."""
        try:
            found = _ask("ls", self, detail=False)
        except FileNotFoundError:
            return iter(())
        keys = sorted({key.rstrip("/") for key in found} - {self.key})
        return map(BucketPath, keys)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: folders are there once they hold something."""

    def read_bytes(self, begin: int | None = None, end: int | None = None) -> bytes:
        """The object's bytes, or those from `begin` up to `end`."""
        data: bytes = _ask("cat_file", self, start=begin, end=end)
        return data

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object's text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Puts the object whole: a reader sees the old one or the new one."""
        _write("pipe_file", self, data)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        """See `write_bytes`."""
        self.write_bytes(text.encode(encoding))

    def upload(self, file: Path) -> None:
        """Puts a local file."""
        _write("put_file", self, first=str(file))

    def download(self, file: Path) -> Path:
        """Writes the object to a local file, and returns that."""
        _ask("get_file", self, str(file))
        return file

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the object."""
        try:
            _ask("rm_file", self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self) -> None:
        """Deletes every object below."""
        try:
            _ask("rm", self, recursive=True)
        except FileNotFoundError:
            return

    def copy(self, to: BucketPath) -> None:
        """Copies the object, inside the service."""
        _ask("cp_file", self, to.key)

    def sizes(self) -> dict[str, int]:
        """The bytes of every object below, by its path within."""
        try:
            found = _ask("find", self, detail=True)
        except FileNotFoundError:
            return {}
        return {key.removeprefix(f"{self.key}/"): int(about["size"]) for key, about in sorted(found.items())}

    def version(self) -> object | None:
        """A value that changes when the object is written; None without an object."""
        found = self._info()
        return found and tuple(str(found.get(key)) for key in ("generation", "etag", "md5Hash", "updated", "size"))

    def size(self) -> int:
        """The object's bytes."""
        found = self._info()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(self))
        return int(found["size"])

    def _info(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = _ask("info", self)
        except FileNotFoundError:
            return None
        return found


def read_ranges(wanted: Sequence[tuple[BucketPath, int | None, int | None]]) -> list[bytes]:
    """Many objects, or parts of them from one byte up to another, read together."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda one: one[0].read_bytes(*one[1:]), wanted))


def storage_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """OSError, what a bucket's library raises beside it, and others, for an `except`."""
    try:
        import aiohttp
        import gcsfs.retry
        import google.auth.exceptions
    except ImportError:
        return OSError, *others
    return OSError, gcsfs.retry.HttpError, aiohttp.ClientError, google.auth.exceptions.GoogleAuthError, *others


def _write(method: str, path: BucketPath, *values: Any, first: str | None = None) -> None:
    try:
        _ask(method, path, *values, first=first)
    except FileNotFoundError as error:
        raise StorageError(f"cannot write {path}: there is no bucket gs://{path.bucket}") from error


def _ask(method: str, path: BucketPath, *values: Any, first: str | None = None, **options: Any) -> Any:
    """A function of gcsfs about a path, called until it is answered or the deadline has passed."""
    from fsspec.exceptions import FSTimeoutError
    from gcsfs.retry import is_retriable

    limit = LATER if path.bucket in _answered else FIRST
    until, pause, last = time.monotonic() + limit, 1.0, ""
    call = getattr(_filesystem(os.environ.get("STORAGE_EMULATOR_HOST")), method)  # it looks for credentials
    arguments = [path.key, *values] if first is None else [first, path.key, *values]
    while True:
        try:
            found = call(*arguments, timeout=max(until - time.monotonic(), 1.0), **options)
            _answered.add(path.bucket)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(path)) from None
        except FSTimeoutError:
            raise StorageError(f"{path} cannot be reached: no answer within {limit:.0f} s{last}") from None
        except storage_errors(ValueError) as error:
            if not is_retriable(error):
                raise StorageError(f"{path} cannot be used: {_in_short(error)}") from error
            last = f" ({_in_short(error)})"
            if time.monotonic() + pause > until:
                raise StorageError(f"{path} cannot be reached: no answer within {limit:.0f} s{last}") from error
            time.sleep(pause)
            pause = min(2 * pause, 30.0)
        else:
            return found


@lru_cache(maxsize=4)
def _filesystem(emulator: str | None) -> Any:
    """gcsfs, asking anew each time what a bucket holds."""
    try:
        import gcsfs.core
    except ImportError as error:
        raise ConfigError("gs:// needs a package that is missing: pip install 'transfusion-jax[gcs]'") from error
    # gcsfs's own choice asks for a bucket's kind first, and emulators do not answer that.
    kind = gcsfs.core.GCSFileSystem if emulator else gcsfs.GCSFileSystem
    return kind(use_listings_cache=False, endpoint_url=emulator, token="anon" if emulator else None)


def _in_short(error: Exception) -> str:
    """The first line; of a refusal, what the service says about it, if anything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[1] if lines[0].startswith("Forbidden:") and len(lines) > 1 else lines[0]
    return "forbidden to these credentials" if line.startswith("Forbidden:") else line[:250]
