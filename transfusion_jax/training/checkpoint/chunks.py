"""Leaves in pieces, so that weights can go in and out of checkpoints that are larger than memory.

A small leaf is one piece. Of a large stack of matrices each is a piece, of a large matrix a stretch of its longer
side. Checkpoints are stored in chunks that no piece cuts, because TensorStore reads and writes chunks whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore

from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.paths import Place
from transfusion_jax.training.checkpoint.checksums import Box, part_checksum

CHUNK = 2**22  # entries: 16 MiB of float32
STACKED = 3  # axes of a leaf that stacks matrices, at least
TREE = "state"  # Orbax's folder of a tree

Pieces = Iterator[tuple[Box, np.ndarray]]


@dataclass(frozen=True)
class Leaf:
    """A leaf that is made or read piece by piece, each time anew.

    Args:
        dtype: NumPy's name of it.
        shape: of the whole leaf.
        pieces: begins a pass over all `boxes` of the shape.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Pieces]

    @classmethod
    def of(cls, value: np.ndarray) -> Leaf:
        """A leaf that is in memory."""
        return cls(str(value.dtype), value.shape, lambda: ((box, value[box]) for box in boxes(value.shape)))

    def checksum(self) -> int:
        """The leaf's checksum, by a pass over it."""
        return sum(part_checksum(value, box, self.shape) for box, value in self.pieces()) % 2**32

    def zeros(self) -> np.ndarray:
        """Zeros in its dtype and shape that take no memory."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)


def boxes(shape: tuple[int, ...]) -> list[Box]:
    """Where the pieces of a leaf are in it, in order: all of it, or parts along one axis."""
    whole = tuple(slice(0, size) for size in shape)
    if not is_cut(shape):
        return [whole]
    axis, step = (0, 1) if len(shape) >= STACKED else _stretch(shape)
    begins = range(0, shape[axis], step)
    return [(*whole[:axis], slice(begin, begin + step), *whole[axis + 1 :]) for begin in begins]


def is_cut(shape: tuple[int, ...]) -> bool:
    """Whether a leaf of this shape has more than one piece."""
    return math.prod(shape) > CHUNK


def chunked() -> ocp.Context:
    """A context in which Orbax stores large arrays in chunks that are no larger than a piece."""
    context = ocp.Context()
    saving = context.array_options.saving
    saving.storage_options.chunk_byte_size = 4 * CHUNK
    saving.scoped_storage_options_creator = _by_matrix
    return context


def opened(folder: Place, name: str) -> Any:
    """TensorStore's array of a leaf, to be read and written, in a folder where Orbax saved a tree.

    Raises:
        ValueError: there is none.
    """
    if isinstance(folder, BucketPath):
        path = folder.key.partition("/")[2]
        base = {"driver": "gcs", "bucket": folder.bucket, "path": f"{path}/{TREE}/"}
    else:
        base = {"driver": "file", "path": f"{folder}/{TREE}/"}
    path = name.replace("/", ".") + "/"
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "ocdbt", "base": base, "path": path},
        "store_data_equal_to_fill_value": True,  # Orbax takes a chunk that is absent for damage, even one of zeros
    }
    return tensorstore.open(spec, open=True).result()


def _by_matrix(path: Any, leaf: Any) -> Any:
    """Has large stacks of matrices cut between these first."""
    del path
    stacked = leaf.ndim >= STACKED and is_cut(leaf.shape)
    return ocp.options.ArrayOptions.Saving.StorageOptions(shard_axes=(0,)) if stacked else None


def _stretch(shape: tuple[int, ...]) -> tuple[int, int]:
    """The longer side, and how much of it is a piece: as Orbax cuts it."""
    cut = list(shape)
    while math.prod(cut) > CHUNK:
        side = cut.index(max(cut))
        cut[side] = next(size for size in range(cut[side] // 2, 0, -1) if cut[side] % size == 0)
    axis = shape.index(max(shape))
    return axis, cut[axis]
