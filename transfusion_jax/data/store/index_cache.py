"""What a host keeps of prepared data in a bucket: its index, and where each record lies.

Both are small beside the data, and are memory-mapped by all of a host's processes. They are kept in the cache by a
hash of the manifest, so that they are fetched once, and verified when they are found.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from transfusion_jax.data.store.record import DamagedRecord
from transfusion_jax.data.store.remote_records import places
from transfusion_jax.storage.atomic import DamagedFile, read_json, write_json, write_whole
from transfusion_jax.storage.cache_dirs import cache_folder
from transfusion_jax.storage.gcs import BucketPath, read_ranges
from transfusion_jax.storage.paths import sha256

HASHES = "hashes.json"  # of the other files of a folder


def index_folder(folder: BucketPath, manifest: str, names: list[str], verified: bool) -> Path:
    """A local folder with files of `index`, by their paths within it.

    Args:
        folder: the prepared folder.
        manifest: its manifest's text.
        names: the files.
        verified: whether another process has verified what is found here.
    """

    def fetch(to: Path) -> None:
        contents = read_ranges([(folder / "index" / name, None, None) for name in names])
        for name, data in zip(names, contents, strict=True):
            write_whole(to / name, data)

    return _kept(manifest, "index", fetch, verified)


def record_places(
    folder: BucketPath, manifest: str, files: list[str], records: list[int], verified: bool
) -> np.ndarray:
    """Where each record of some files begins and ends, `[records of all files, 2]` int64.

    Args:
        folder: the prepared folder.
        manifest: its manifest's text.
        files: their names; an empty one stands for a shard that has none.
        records: how many records each shard has.
        verified: whether another process has verified what is found here.

    Raises:
        DamagedRecord: a file is missing or damaged, or holds other records.
    """

    def find(to: Path) -> None:
        sizes = folder.sizes()
        missing = [name for name in files if name and not sizes.get(name)]
        if missing:
            raise DamagedRecord(f"{folder / missing[0]} is missing")
        found = places([(folder / name, sizes[name]) for name in files if name])
        parts = []
        for name, count in zip(files, records, strict=True):
            begins, end = next(found) if name else (np.zeros(count, np.int64), 0)
            if len(begins) != count:
                raise DamagedRecord(f"{folder / name} holds {len(begins)} records, and should hold {count}")
            parts.append(np.stack([begins, np.append(begins[1:], end)[:count]], axis=1))
        np.save(to / "places.npy", np.concatenate(parts))

    key = hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]
    return np.asarray(np.load(_kept(manifest, key, find, verified) / "places.npy", mmap_mode="r"))


def _kept(manifest: str, name: str, make: Callable[[Path], None], verified: bool) -> Path:
    """A folder of the cache, made by a function unless it is complete; the first process to finish provides it."""
    folder = cache_folder() / "buckets" / hashlib.sha256(manifest.encode()).hexdigest()[:16] / name
    if folder.is_dir():
        if verified or _is_whole(folder):
            return folder
        with suppress(FileNotFoundError):  # another process may be at the same
            shutil.rmtree(folder.rename(Path(tempfile.mkdtemp(suffix=".damaged", dir=folder.parent)) / name).parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{name}.", suffix=".partial", dir=folder.parent))
    try:
        make(partial)
        write_json(partial / HASHES, _hashes(partial))
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        return read_json(folder / HASHES, "") == _hashes(folder)
    except (DamagedFile, FileNotFoundError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != HASHES)
    return {str(path.relative_to(folder)): sha256(path) for path in files}
