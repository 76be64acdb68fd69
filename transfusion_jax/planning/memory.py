"""Where the state and a batch lie, in bytes per device, from their shapes and shardings: nothing is compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from transfusion_jax.config import Config
from transfusion_jax.data.batch import abstract_batch
from transfusion_jax.parallel.mesh import AXES
from transfusion_jax.parallel.sharding import batch_sharding, state_shardings
from transfusion_jax.tasks.base import Task
from transfusion_jax.training.step.state import State, new_state, state_axes

KINDS = {"params": "parameters", "optimizer": "optimizer moments", "ema": "average"}  # by field of the state


@dataclass(frozen=True)
class ArraySize:
    """One array of the state."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    bytes: int  # on each device that holds a part
    whole: int  # bytes of all of it

    def line(self) -> str:
        """For reading."""
        shape = ",".join(map(str, self.shape))
        return f"{self.name:<64} {self.dtype}[{shape}]  {self.spec}  {self.bytes:,}"


@dataclass(frozen=True)
class Sizes:
    """Bytes per device by kind."""

    by_kind: dict[str, int]  # "parameters", "optimizer moments", "average", "batch"
    checkpoint: int  # of the state, over all devices, each part once


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
    """A mesh without devices; axes that are not named have one."""
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def state_shapes(task: Task, config: Config) -> State:
    """Shapes and dtypes of the state."""
    shapes: State = jax.eval_shape(lambda: new_state(task, config))
    return shapes


def leaves(task: Task, shapes: State, mesh: Any) -> list[ArraySize]:
    """The state's arrays, in the order of its tree."""

    def leaf(path: tuple, array: Any, sharding: Any) -> ArraySize:
        item = array.dtype.itemsize
        part = math.prod(sharding.shard_shape(array.shape)) * item
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = "replicated" if part == array.size * item else str(tuple(sharding.spec)).replace("'", "")
        return ArraySize(name, array.shape, str(array.dtype), spec, part, array.size * item)

    shardings = jax.tree.leaves(state_shardings(shapes, mesh, state_axes(task)))
    return [leaf(*found, s) for found, s in zip(jax.tree.leaves_with_path(shapes), shardings, strict=True)]


def state_sizes(task: Task, shapes: State, config: Config, mesh: Any) -> Sizes:
    """Of the state and of a batch."""
    by_kind = dict.fromkeys(KINDS.values(), 0)
    state = leaves(task, shapes, mesh)
    for leaf in state:
        kind = KINDS.get(leaf.name.split("/")[0])
        if kind:
            by_kind[kind] += leaf.bytes
    sharding = batch_sharding(mesh)
    batch = jax.tree.leaves(abstract_batch(config))
    by_kind["batch"] = sum(math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in batch)
    return Sizes(by_kind, sum(leaf.whole for leaf in state))
