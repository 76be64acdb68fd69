"""Where every leaf of the state and of a batch lives.

Parameters name their axes where they are made; one dataclass maps those names to mesh axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

Axes = str | tuple[str, ...] | None
AxisNames = Mapping[str, tuple[str, ...]]  # of each array by name, such as trunk/layers/mlp/down


@dataclass(frozen=True)
class Rules:
    """The mesh axes that each named axis is split over."""

    batch: Axes = ("data", "fsdp")
    elements: Axes = "context"
    slots: Axes = ("context", "tensor")  # of a row's images, in a patch coder that works on images apart
    vocabulary: Axes = "tensor"
    width: Axes = ("fsdp", "context")
    heads: Axes = "tensor"
    mlp: Axes = "tensor"
    norm: Axes = None
    features: Axes = None
    patch: Axes = None
    window: Axes = None
    inputs: Axes = None
    layers: Axes = None
    recent: Axes = None
    values: Axes = None

    def spec(self, names: tuple[str, ...]) -> P:
        """The partition of an array with these named axes.

        Raises:
            ValueError: two of its axes would be split over the same mesh axis.
        """
        axes = [getattr(self, name) for name in names]
        flat = [a for entry in axes if entry for a in ((entry,) if isinstance(entry, str) else entry)]
        if len(flat) != len(set(flat)):
            raise ValueError(f"axes {names} collide on the mesh: {axes}")
        return P(*axes)


AXES = frozenset(field.name for field in fields(Rules))


def axis_names(axes: AxisNames, path: tuple, rank: int) -> tuple[str, ...]:
    """Named axes of a state leaf at a tree path: those of the array whose name the path ends in.

    So a parameter's optimizer moments and average have the parameter's. Scalars have none.

    Raises:
        KeyError: the path ends in no name, or the rank differs.
    """
    if rank == 0:
        return ()
    path_name = jax.tree_util.keystr(path, simple=True, separator="/")
    keys = path_name.split("/")
    names = next((axes[name] for start in range(len(keys)) if (name := "/".join(keys[start:])) in axes), None)
    if names is None or len(names) != rank:
        raise KeyError(f"{path_name} has {rank} axes, and its names are {names}")
    return names


def state_shardings(abstract: Any, mesh: Mesh, axes: AxisNames, rules: Rules | None = None) -> Any:
    """An explicit sharding for every leaf of a state (or of parameters).

    Args:
        abstract: arrays, or their shapes.
        mesh: what they are split over.
        axes: see `Task.axes` and `state_axes`.
        rules: other ones than the default.
    """
    rules = rules or Rules()

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, rules.spec(axis_names(axes, path, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def batch_sharding(mesh: Mesh, rules: Rules | None = None) -> NamedSharding:
    """The sharding of every leaf of a batch: rows split, the rest whole."""
    return NamedSharding(mesh, (rules or Rules()).spec(("batch",)))


def replicated(sharding: Sharding) -> Sharding:
    """The same devices, each with all of the array."""
    return NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else sharding


def partition(mesh: Any, shape: tuple[int, ...], *names: str | None) -> P:
    """How an array's leading axes of these names are split: each where its parts are equal, else not.

    Args:
        mesh: a mesh, or an abstract one.
        shape: the array's.
        names: fields of `Rules`; None, and what is not named, is whole.
    """

    def split(name: str | None, size: int) -> Axes:
        axes: Axes = None if name is None else getattr(Rules(), name)
        parts = [mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ())]
        return axes if size % math.prod(parts) == 0 else None

    return P(*(split(name, size) for name, size in zip(names, shape, strict=False)))


def split(x: jax.Array, *names: str | None) -> jax.Array:
    """An activation, split by the names of its leading axes over the mesh in scope, if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition(mesh, x.shape, *names))


class HeadSplit(NamedTuple):
    """Whether attention splits its heads over the mesh axis `tensor`."""

    queries: bool
    keys: bool


def head_split(queries: int, keys: int, tensor: int) -> HeadSplit:
    """How attention splits its heads over the devices of `tensor`.

    Keys and values where their heads divide evenly, and queries with them. Queries alone where each device's share
    one head of keys; else neither.

    Args:
        queries: heads of queries.
        keys: heads of keys and values, which divide those of queries.
        tensor: devices.
    """
    if keys % tensor == 0:
        return HeadSplit(True, True)
    return HeadSplit(queries % tensor == 0 and tensor % keys == 0, False)


def ways(name: str) -> int:
    """Into how many parts the mesh in scope splits axes of this name."""
    mesh, axes = jax.sharding.get_abstract_mesh(), getattr(Rules(), name)
    named = (axes,) if isinstance(axes, str) else axes or ()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in named)


def is_split(name: str) -> bool:
    """Whether the mesh in scope splits axes of this name."""
    return ways(name) > 1


def to_host(tree: Any) -> Any:
    """The same arrays in this process's memory, whole; every process must call this where several hold them."""

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    return jax.tree.map(whole, tree)


def local_rows(sharding: NamedSharding, rows: int) -> slice:
    """The rows of a global batch that this process's devices cover.

    Raises:
        ValueError: they are not one stretch.
    """
    indices = sharding.addressable_devices_indices_map((rows,)).values()
    slices = [index[0].indices(rows)[:2] for index in indices if index]
    begin, end = min(s[0] for s in slices), max(s[1] for s in slices)
    if set().union(*(range(*s) for s in slices)) != set(range(begin, end)):
        raise ValueError(f"this process's devices hold rows {sorted(set(slices))}, which are not one stretch")
    return slice(begin, end)
