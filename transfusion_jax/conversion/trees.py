"""Weights wherever they are, run, checkpoint or safetensors, as leaves by name: looked at, and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.conversion.shards import INDEX, NAME, Shards
from transfusion_jax.training.checkpoint import PARTS, Checkpoints
from transfusion_jax.training.starts import find_checkpoint


@dataclass(frozen=True)
class Tree:
    """Leaves by name, read one at a time."""

    shapes: dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape
    read: Callable[[str], np.ndarray]

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        return ((name, self.read(name)) for name in self.shapes)


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
        shapes = {name: (str(shards[name].dtype), shards.shape(name)) for name in sorted(shards.files)}
        return Tree(shapes, shards.__getitem__)
    checkpoints, step = find_checkpoint(spec)
    return saved_tree(checkpoints, step, weights)


def saved_tree(checkpoints: Checkpoints, step: int, weights: str) -> Tree:
    """One set of weights of a checkpoint."""
    prefix = f"{PARTS[weights]}/"
    leaves = checkpoints.manifest(step)["leaves"]
    found = {n.removeprefix(prefix): (d, tuple(s)) for n, (d, s) in leaves.items() if n.startswith(prefix)}

    return Tree(found, lambda name: checkpoints.leaf(step, prefix + name))


def describe(tree: Tree) -> list[dict[str, Any]]:
    """Of each leaf its name, dtype, shape, number of values, and root mean square."""
    rows = []
    for name, value in tree:
        wide = value.astype(np.float32)
        rows.append(
            {
                "name": name,
                "dtype": str(value.dtype),
                "shape": list(value.shape),
                "values": int(value.size),
                "rms": float(np.sqrt(np.mean(np.square(wide)))),
                "finite": bool(np.all(np.isfinite(wide))),
            }
        )
    return rows


def differences(first: Tree, second: Tree, tolerance: float) -> list[Difference]:
    """What differs by more than a relative tolerance, and what is in one tree alone."""
    found = []
    for name in sorted(first.shapes.keys() | second.shapes.keys()):
        if name not in first.shapes or name not in second.shapes:
            found.append(Difference(name, f"only in the {'first' if name in first.shapes else 'second'}"))
            continue
        (_, one), (_, other) = first.shapes[name], second.shapes[name]
        if one != other:
            found.append(Difference(name, f"shape {list(one)} and {list(other)}"))
            continue
        dtypes = [tree.shapes[name][0] for tree in (first, second)]
        if not tolerance and dtypes[0] != dtypes[1]:
            found.append(Difference(name, f"dtype {' and '.join(dtypes)}"))
            continue
        a, b = (tree.read(name).astype(np.float32) for tree in (first, second))
        largest = float(np.max(np.abs(a - b), initial=0))
        relative = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-30))
        if not relative <= tolerance:  # a NaN differs
            found.append(Difference(name, f"differs by {largest:.3g} at most, {relative:.2%}", largest, relative))
    return found
