"""Checksums of a pytree's leaves.

A leaf's checksum is computed where the leaf lives, by the devices or by NumPy: the sum, modulo 2³², of a mix of
each entry's bits with its place. It does not depend on how the leaf is split over devices, and is the sum of what
its parts add. A flipped bit always changes it, and entries that changed places do.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax.parallel.sharding import to_host
from transfusion_jax.parallel.tree import leaf_names

GOLDEN = 0x9E3779B9  # spreads places over all bits, as in MurmurHash3's finalizer below
BLOCK = 2**20  # entries that NumPy takes at a time

Box = tuple[slice, ...]  # a part of a leaf: where it begins and ends on each axis


def checksums(tree: Any) -> dict[str, int]:
    """`{leaf name: checksum}`; waits for the leaves to be computed."""
    leaves = dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
    arrays = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, jax.Array)}
    found = dict(zip(arrays, to_host(_on_devices(list(arrays.values()))).tolist(), strict=True)) if arrays else {}
    return {name: found[name] if name in found else _on_host(leaf) for name, leaf in leaves.items()}


def part_checksum(part: np.ndarray, box: Box, shape: tuple[int, ...]) -> int:
    """What a part adds to the checksum of its leaf, modulo 2³².

    Args:
        part: the entries.
        box: where they are in the leaf, with every slice's start and stop.
        shape: of the whole leaf.
    """
    *lines, line = box or (slice(0, 1),)
    begins = np.zeros(1, np.int64)  # of the part's lines, entries along the last axis, in the leaf
    for along, size in zip(lines, shape, strict=False):
        begins = (begins[:, None] * size + np.arange(along.start, along.stop)).reshape(-1)
    begins = begins * (shape[-1] if shape else 1) + line.start
    width = line.stop - line.start
    flat, total = part.reshape(begins.size, width), 0
    flat = flat if part.dtype == np.bool_ else flat.view(f"uint{part.dtype.itemsize * 8}")
    step = max(1, BLOCK // max(1, width))
    for first in range(0, begins.size, step):
        bits = flat[first : first + step].astype(np.uint32)
        places = (begins[first : first + step, None] + np.arange(width)).astype(np.uint32)
        total += int(np.sum(_mix(bits + places * np.uint32(GOLDEN)), dtype=np.uint32))
    return total % 2**32


@jax.jit
def _on_devices(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_on_device(leaf) for leaf in leaves])


def _on_device(leaf: jax.Array) -> jax.Array:
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        stride = math.prod(leaf.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride)
    return jnp.sum(_mix(_bits(leaf) + place * jnp.uint32(GOLDEN)), dtype=jnp.uint32)


def _on_host(leaf: np.ndarray) -> int:
    return part_checksum(leaf, tuple(slice(0, size) for size in leaf.shape), leaf.shape)


def _bits(leaf: jax.Array) -> jax.Array:
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    width = leaf.dtype.itemsize * 8
    return jax.lax.bitcast_convert_type(leaf, f"uint{width}").astype(jnp.uint32)


def _mix(x: Any) -> Any:
    """A bijection of 32-bit integers: different entries at a place never mix alike."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
