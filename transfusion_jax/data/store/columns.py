"""The columns of a prepared folder's index: a number for each document, memory-mapped and verified.

Of folders that former versions prepared, whose manifests keep no hashes of columns, what can be verified is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.storage.paths import sha256

SPLITS = ("train", "held_out")
COLUMNS: dict[str, type] = {"record": np.int64, "text_lengths": np.uint32, "images": np.uint16}
AREAS: dict[str, type] = {
    "areas": np.uint32
}  # pixels of a document's images, where they have their own proportions


def column_file(index: Path, split: str, name: str) -> Path:
    """Where the column of this name lies."""
    return index / split / f"{name}.npy"


def open_column(index: Path, split: str, name: str, manifest: Mapping[str, Any], verified: bool) -> np.ndarray:
    """A column of a part of the data, `[documents]`, memory-mapped.

    Args:
        index: the folder of all columns.
        split: one of `SPLITS`.
        name: one of `COLUMNS` or `AREAS`.
        manifest: the prepared folder's.
        verified: whether another process has verified the column.

    Raises:
        OSError, EOFError, ValueError: it is missing, cut short, or not what was written.
    """
    path = column_file(index, split, name)
    column = np.load(path, mmap_mode="r")
    if not verified:
        _verify(path, split, name, column, manifest)
    return np.asarray(column)


def _verify(path: Path, split: str, name: str, column: np.ndarray, manifest: Mapping[str, Any]) -> None:
    """Raises ValueError where a column is not the one that was written; former versions kept sums at most."""
    hashes, about = manifest.get("index"), manifest["splits"][split]
    if column.shape != (about["documents"],) or column.dtype != (COLUMNS | AREAS)[name]:
        raise ValueError(f"{column.dtype}{list(column.shape)}, and there are {about['documents']} documents")
    if hashes is not None:
        if sha256(path) != hashes[f"{split}/{name}.npy"]:
            raise ValueError("its hash is not the one in data.json")
    elif name == "record":
        records = sum(shard["records"] for shard in manifest["shards"])
        if np.any(np.diff(column, prepend=-1, append=records) <= 0):
            raise ValueError("its records are not in order")
    elif int(column.sum(dtype=np.int64)) != about["text_tokens" if name == "text_lengths" else name]:
        raise ValueError("its sum is not the one in data.json")
