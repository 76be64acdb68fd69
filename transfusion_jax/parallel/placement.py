"""Where a state lives, in bytes per device, and whether that is where it was meant to."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from transfusion_jax.config import ConfigError
from transfusion_jax.errors import some

SMALL = 2**20  # bytes: what is whole on every device and smaller is not worth a word


def describe_placement(parts: dict[str, Any]) -> list[str]:
    """A line for each part of a state with its bytes per device, and one for large leaves that are not split.

    Args:
        parts: trees of arrays, or of their shapes, with shardings; by name.
    """
    lines = [f"  {'':12}{'per device':>12}{'in all':>12}"]
    for name, tree in parts.items():
        leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
        if leaves:
            here, whole = (sum(size(leaf) for leaf in leaves) for size in (bytes_per_device, whole_bytes))
            lines.append(f"  {name:12}{_mebibytes(here):>12}{_mebibytes(whole):>12}")
    return lines


def unsplit(tree: Any) -> dict[str, int]:
    """Leaves of more than a mebibyte that every device of the mesh holds whole: `{path: bytes}`."""
    return {
        _name(path): whole_bytes(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if whole_bytes(leaf) > SMALL and leaf.sharding.num_devices > 1 and leaf.sharding.is_fully_replicated
    }


def check_placement(state: Any, abstract: Any) -> None:
    """Raises ConfigError where a leaf does not live as it was meant to."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(abstract), strict=True)
    wrong = [
        f"{_name(path)} is {leaf.sharding.spec}, not {meant.sharding.spec}"
        for (path, leaf), meant in pairs
        if not leaf.sharding.is_equivalent_to(meant.sharding, leaf.ndim)
    ]
    if wrong:
        raise ConfigError(f"the state does not lie on the mesh as its rules say: {some(wrong)}")


def bytes_per_device(leaf: Any) -> int:
    """What one device holds of an array."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize


def whole_bytes(leaf: Any) -> int:
    """An array's size."""
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
