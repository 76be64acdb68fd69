"""Whether an output can be written: asked before the work that it is to hold."""

from __future__ import annotations

import os
import socket
import tempfile

from transfusion_jax.errors import StorageError, require
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.paths import Place


def check_output_file(path: Place) -> None:
    """Returns where a file can be written; nothing is made or left behind.

    Raises:
        ConfigError: it is a folder.
        StorageError: its folder cannot be written to.
    """
    require(not path.is_dir(), f"{path} is a folder: name a file in it")
    check_writable(path.parent)


def check_output_folder(path: Place) -> None:
    """Returns where files can be written to a folder; nothing is made or left behind.

    Raises:
        ConfigError: it is a file.
        StorageError: it cannot be written to.
    """
    require(path.is_dir() or not path.exists(), f"{path} is a file: choose a folder")
    check_writable(path)


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
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    require(there.is_dir(), f"{there} is a file: nothing can be written to {folder}")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"probe")
    except OSError as error:
        raise StorageError(f"cannot write to {there}: {error.strerror}") from error
