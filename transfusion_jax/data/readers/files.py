"""Files by path or by URL of a bucket."""

from __future__ import annotations

import errno
import glob
import gzip
import io
import itertools
import os
import stat
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
LARGEST = 1 << 27  # bytes of one record; a larger one is a fault, so that no data can fill the memory
GZIP, ZSTD = (".gz", ".tgz"), (".zst",)
WINDOW = 1 << 31  # bytes that zstd may look back: what `zstd --long=31` asks for
AT_ONCE = 1 << 10  # compressed bytes, of which zstd makes 32 MiB at most
AHEAD = 1 << 23  # bytes that one request to a bucket asks for: archives are read in small pieces
SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
DAMAGE = (OSError, EOFError, zlib.error)  # what reading damaged data raises; `damage` tells it from a failing disk


def is_url(path: str) -> bool:
    """Whether a path names a bucket, or any other place with a scheme."""
    return "://" in path


def open_file(path: str) -> IO[bytes]:
    """The file's bytes, seekable.

    Raises:
        OSError: there is no such file, or what is there is no regular file: a pipe would be waited for without end.
    """
    if not is_url(path):
        return open(path, "rb", opener=_open_regular)
    system, name = _system(path)
    opened: IO[bytes] = system.open(name, "rb", block_size=AHEAD, cache_type="readahead")
    return opened


@contextmanager
def open_unpacked(path: str) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed where its name ends in .gz, .tgz or .zst; not seekable then."""
    with open_file(path) as file:
        if path.lower().endswith(GZIP):
            yield io.BufferedReader(_Gzip(file))
        elif path.lower().endswith(ZSTD):
            yield io.BufferedReader(_Frames(file))
        else:
            yield file


def read_some(stream: IO[bytes], size: int) -> bytes:
    """Some of the next bytes, none at the end; what stands before damage is read before the damage is met."""
    data: bytes = getattr(stream, "read1", stream.read)(size)
    return data


def is_packed(path: str) -> bool:
    """Whether `open_unpacked` decompresses a file."""
    return path.lower().endswith(GZIP + ZSTD)


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


def state(path: str) -> str:
    """What is known of a file without reading it: something else once it has changed."""
    system, name = _system(path)
    return str(sorted(system.info(name).items()))


def is_folder(path: str) -> bool:
    """Whether the path is a folder."""
    system, name = _system(path)
    return bool(system.isdir(name))


def exists(path: str) -> bool:
    """Whether there is a file or a folder at the path."""
    system, name = _system(path)
    return bool(system.exists(name))


def what_is(path: str) -> str:
    """A few words on what is at a local path and cannot be read as a file; none where it can, or in a bucket."""
    if is_url(path):
        return ""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):  # opening it says what else is wrong
        return "a link that leads nowhere" if os.path.islink(path) else ""
    return "" if kind in (stat.S_IFREG, stat.S_IFDIR) else SPECIAL.get(kind, "no regular file")


def is_hidden(name: str) -> bool:
    """Whether a path within a folder or an archive leads to what systems and editors keep beside data."""
    parts = name.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)


def matches(pattern: str) -> list[str]:
    """The files that a pattern such as `a/*.tar` matches, sorted; hidden ones where it names them."""
    system, name = _system(pattern)
    fixed = "/".join(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.split("/")))
    hidden = is_hidden(pattern[len(fixed) :])
    try:
        found = sorted(system.unstrip_protocol(n) if is_url(pattern) else n for n in system.glob(name))
    except FileNotFoundError:  # gcsfs's, where there is no bucket
        return []
    root = fixed if is_url(pattern) else os.path.abspath(fixed)
    return [path for path in found if hidden or not is_hidden(path.removeprefix(root))]


def inside(folder: str) -> list[str]:
    """Every file below a folder by its path within it, sorted; hidden files and folders are left out."""
    system, name = _system(folder)
    root = system._strip_protocol(name).rstrip("/") + "/"
    names = sorted(n.removeprefix(root) for n in system.find(name))
    return [name for name in names if not is_hidden(name)]


def lies_in(path: str, folder: str) -> bool:
    """Whether a path lies in a folder, wherever links lead."""
    if is_url(path) or is_url(folder):
        parts = path.split("/")
        return ".." not in parts and path.startswith(folder.rstrip("/") + "/")
    root, at = os.path.realpath(folder or "."), os.path.realpath(path)
    return f"{at}/".startswith(root.rstrip("/") + "/")


def plain(path: str) -> str:
    """A path without slashes that repeat or end it, and without `./`, all of which lead nowhere else."""
    if is_url(path) or ".." in path.split("/"):  # which may lead through a link
        return path.rstrip("/")
    return os.path.normpath(path) if path else path


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


def _open_regular(path: str, flags: int) -> int:
    """As os.open, of a regular file; it waits for nothing."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(number) if stat.S_ISDIR(mode) else "Not a regular file", path)
    return descriptor


class _Gzip(io.RawIOBase):
    """What a gzip file holds; all that stands before a cut is read before EOFError is raised."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = gzip.GzipFile(fileobj=file)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, into: Any) -> int:
        """Fills a part of a buffer; the number of its bytes that were written, 0 at the end."""
        data = self._file.read1(len(into))
        into[: len(data)] = data
        return len(data)


class _Frames(io.RawIOBase):
    """What a file of zstd's frames holds; all that stands before a cut is read before EOFError is raised."""

    def __init__(self, file: IO[bytes]) -> None:
        zstandard = package("zstandard", "transfusion-jax[prepare]")
        self._file, self._errors = file, zstandard.ZstdError
        self._frame = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj
        self._open: Any = None  # of the frame that is read
        self._packed, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, into: Any) -> int:
        """Fills a buffer; the number of its bytes that were written, 0 at the end.

        Raises:
            EOFError: the last frame has no end.
            OSError: a frame is damaged.
        """
        while not self._ready:
            self._packed = self._packed or self._file.read(AT_ONCE)
            if not self._packed:
                if self._open is not None:
                    raise EOFError("the compressed file ends within a frame")
                return 0
            self._open = self._open or self._frame()
            try:
                self._ready = memoryview(self._open.decompress(self._packed))
            except self._errors as error:
                raise OSError(str(error)) from error
            self._packed = b""
            if self._open.eof:
                self._packed, self._open = self._open.unused_data, None
        count = min(len(into), len(self._ready))
        into[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


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
