"""Weights wherever they are, run, checkpoint or safetensors, as leaves by name: looked at, and compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.conversion.shards import INDEX, NAME, Shards
from transfusion_jax.training.checkpoint.chunks import Leaf
from transfusion_jax.training.checkpoint.reader import PARTS, CheckpointReader
from transfusion_jax.training.start_run import read_checkpoint

Tree = dict[str, Leaf]  # leaves by name, read piece by piece


@dataclass(frozen=True)
class Difference:
    """How a leaf differs between two trees."""

    name: str
    what: str  # for people
    largest: float = 0.0  # absolute
    relative: float = 0.0  # norm of the difference by the first leaf's


def open_tree(spec: str, weights: str = "raw") -> Tree:
    """The weights of `RUN[:STEP]`, of a checkpoint's folder, or of a safetensors file or folder.

    Raises:
        UserError: there are none.
    """
    path = Path(spec)
    if path.suffix == ".safetensors" or (path / NAME).is_file() or (path / INDEX).is_file():
        shards = Shards.of(path)
        return {name: shards.leaf(name) for name in sorted(shards.files)}
    return read_checkpoint(spec, lambda checkpoints, step: saved_tree(checkpoints, step, weights))


def saved_tree(checkpoints: CheckpointReader, step: int, weights: str) -> Tree:
    """One set of weights of a checkpoint."""
    prefix = f"{PARTS[weights]}/"
    return {
        name.removeprefix(prefix): Leaf(dtype, tuple(shape), partial(checkpoints.read_pieces, step, name))
        for name, (dtype, shape) in checkpoints.manifest(step)["leaves"].items()
        if name.startswith(prefix)
    }


def describe_leaves(tree: Tree) -> list[dict[str, Any]]:
    """Of each leaf its name, dtype, shape, number of values, and root mean square."""
    rows = []
    for name, leaf in tree.items():
        size, squares, finite = math.prod(leaf.shape), 0.0, True
        for _, value in leaf.pieces():
            wide = value.astype(np.float32)
            squares += float(np.sum(np.square(wide), dtype=np.float64))
            finite &= bool(np.all(np.isfinite(wide)))
        rows.append(
            {
                "name": name,
                "dtype": leaf.dtype,
                "shape": list(leaf.shape),
                "values": size,
                "rms": math.sqrt(squares / max(size, 1)),
                "finite": finite,
            }
        )
    return rows


def differences(first: Tree, second: Tree, tolerance: float) -> list[Difference]:
    """What differs by more than a relative tolerance, and what is in one tree alone."""
    found = []
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            found.append(Difference(name, f"only in the {'first' if name in first else 'second'}"))
            continue
        one, other = first[name], second[name]
        if one.shape != other.shape:
            found.append(Difference(name, f"shape {list(one.shape)} and {list(other.shape)}"))
            continue
        if not tolerance and one.dtype != other.dtype:
            found.append(Difference(name, f"dtype {one.dtype} and {other.dtype}"))
            continue
        largest, relative = _distance(one, other)
        if not relative <= tolerance:  # a NaN differs
            found.append(Difference(name, f"differs by {largest:.3g} at most, {relative:.2%}", largest, relative))
    return found


def _distance(one: Leaf, other: Leaf) -> tuple[float, float]:
    """The largest difference, and the norm of the difference by that of the first."""
    largest = squares = norm = 0.0
    for (_, a), (_, b) in zip(one.pieces(), other.pieces(), strict=True):
        a, b = a.astype(np.float32), b.astype(np.float32)
        apart = a - b
        largest = float(np.maximum(largest, np.max(np.abs(apart), initial=0)))
        squares += float(np.sum(np.square(apart), dtype=np.float64))
        norm += float(np.sum(np.square(a), dtype=np.float64))
    return largest, math.sqrt(squares) / max(math.sqrt(norm), 1e-30)
