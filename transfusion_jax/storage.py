"""Places where workdirs and prepared data are kept: folders, or buckets as `gs://BUCKET/FOLDER`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfusion_jax.bucket import BucketPath, read_ranges
from transfusion_jax.config.checks import ConfigError

Place = Path | BucketPath
BUCKETS = "gs"


def place(name: str | Place) -> Place:
    """The place of that name.

    Raises:
        ConfigError: it has another scheme, or names no bucket.
    """
    if isinstance(name, Path | BucketPath):
        return name
    scheme, separator, rest = name.partition(":")
    if scheme == BUCKETS and separator:
        key = "/".join(part for part in rest.removeprefix("//").split("/") if part)
        if not rest.startswith("//") or not key:
            raise ConfigError(f"{name} names no bucket: write gs://BUCKET/FOLDER")
        return BucketPath(key)
    if rest.startswith("//"):
        raise ConfigError(f"{name}: {scheme}:// cannot be used here; give a local path or gs://BUCKET/FOLDER")
    return Path(name)


def remove(folder: Place) -> None:
    """Deletes a folder and all that it holds."""
    if isinstance(folder, BucketPath):
        folder.remove()
    else:
        shutil.rmtree(folder)


def sizes(folder: Place) -> dict[str, int]:
    """The bytes of every file below a folder, by its path within."""
    if isinstance(folder, BucketPath):
        return folder.sizes()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def within(path: Place, folder: Place) -> str:
    """The path of something in a folder, seen from there."""
    return str(path).removeprefix(f"{folder}/")


def read_all(paths: Sequence[Place]) -> list[bytes]:
    """The bytes of many files; those of a bucket are read together."""
    remote = [path for path in paths if isinstance(path, BucketPath)]
    found = iter(read_ranges([(path, None, None) for path in remote]) if remote else [])
    return [next(found) if isinstance(path, BucketPath) else path.read_bytes() for path in paths]


def for_orbax(path: Place) -> Any:
    """The path as Orbax takes it. It reaches buckets through fsspec as well, without TensorFlow."""
    if isinstance(path, Path):
        return path
    import fsspec
    from etils import epath

    os.environ.setdefault("EPATH_USE_TF", "false")
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.Path(str(path))
