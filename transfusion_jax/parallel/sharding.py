"""Where every leaf of the state and of a batch lives.

One table gives each parameter's axes names by the leaf's name; one dataclass maps those names to mesh axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

Axes = str | tuple[str, ...] | None

PARAMETER_AXES: dict[str, tuple[str, ...]] = {
    "embedding": ("vocabulary", "width"),
    "text_head": ("width", "vocabulary"),
    "scale": ("norm",),
    "head_scale": ("heads", "norm"),
    "head_bias": ("heads", "norm"),
    "query": ("width", "heads"),
    "key": ("width", "heads"),
    "value": ("width", "heads"),
    "output": ("heads", "width"),
    "gate": ("width", "mlp"),
    "up": ("width", "mlp"),
    "down": ("mlp", "width"),
    "timestep_in": ("features", "width"),
    "timestep_in_bias": ("norm",),
    "timestep_out": ("features", "width"),
    "timestep_out_bias": ("norm",),
    "patch_in": ("patch", "width"),
    "patch_in_bias": ("norm",),
    "patch_out": ("width", "patch"),
    "patch_out_bias": ("patch",),
    "latents_in": ("window", "window", "patch", "width"),
    "latents_in_bias": ("norm",),
    "conv_in": ("window", "window", "inputs", "width"),
    "conv_in_bias": ("norm",),
    "conv_out": ("window", "window", "inputs", "width"),
    "conv_out_bias": ("norm",),
    "timestep": ("features", "width"),
    "shortcut": ("inputs", "width"),
    "resize": ("window", "window", "inputs", "width"),
    "resize_bias": ("norm",),
    "to_trunk": ("inputs", "width"),
    "to_trunk_bias": ("norm",),
    "from_trunk": ("width", "inputs"),
    "from_trunk_bias": ("norm",),
    "latents_out": ("window", "window", "width", "patch"),
    "latents_out_bias": ("patch",),
    "bias": ("norm",),
    "kernel": ("window", "window", "inputs", "norm"),
    "matrix": ("inputs", "norm"),
    "entries": ("inputs", "norm"),
    ".guard.recent": ("recent", "values"),
}
STACKED = "layers"  # leaves under this name carry a leading axis of layers
FROM_FILE, WHOLE = "perceptual", "norm"  # leaves under the first keep a file's names, and are split nowhere


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


def axis_names(path: tuple, rank: int) -> tuple[str, ...]:
    """Named axes of a state leaf at a tree path; optimizer moments carry their parameter's path.

    Raises:
        KeyError: the leaf is not in the table, or its rank differs.
    """
    if rank == 0:
        return ()
    keys = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    name = keys[-1] if keys else jax.tree_util.keystr(path)
    if FROM_FILE in keys:
        return (WHOLE,) * rank
    if name not in PARAMETER_AXES:
        raise KeyError(f"no axes for {jax.tree_util.keystr(path)}: add {name!r} to PARAMETER_AXES")
    names = ((STACKED,) if STACKED in keys else ()) + PARAMETER_AXES[name]
    if len(names) != rank:
        raise KeyError(f"{jax.tree_util.keystr(path)} has {rank} axes, and PARAMETER_AXES gives {names}")
    return names


def state_shardings(abstract: Any, mesh: Mesh, rules: Rules | None = None) -> Any:
    """An explicit sharding for every leaf of a state (or of parameters)."""
    rules = rules or Rules()

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, rules.spec(axis_names(path, leaf.ndim)))

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


def ways(name: str) -> int:
    """Into how many parts the mesh in scope splits axes of this name."""
    mesh, axes = jax.sharding.get_abstract_mesh(), getattr(Rules(), name)
    named = (axes,) if isinstance(axes, str) else axes or ()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in named)


def is_split(name: str) -> bool:
    """Whether the mesh in scope splits axes of this name."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and partition(mesh, (1,), name) == P(None)


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
