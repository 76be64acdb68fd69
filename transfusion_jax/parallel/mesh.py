"""The device mesh.

| axis | splits |
|---|---|
| `data` | rows; parameters are whole on each part. Across slices, whose network is slow, there is this axis alone |
| `fsdp` | rows, and parameters |
| `context` | the elements of each row, and parameters |
| `tensor` | heads, the MLP's width and the vocabulary |
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transfusion_jax.config import Config, MeshConfig, Run, require
from transfusion_jax.parallel.sharding import head_split

AXES = ("data", "fsdp", "context", "tensor")


def check_batch(mesh: Mesh, config: Run) -> None:
    """Raises ConfigError where a batch cannot be split evenly over the mesh."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    require(
        config.part_rows % ways == 0,
        f"batch_rows {config.batch_rows} in {config.accumulation} part(s) cannot be split over data × fsdp = "
        f"{ways} devices: change batch_rows, accumulation or the mesh",
    )
    if not isinstance(config, Config):
        for axis in ("context", "tensor"):
            parts = mesh.shape[axis]
            require(
                parts == 1,
                f"mesh.{axis} is {parts}, but only transformers can be split so: use mesh.data or mesh.fsdp",
            )
        return
    length, parts = config.data.context_length, mesh.shape["context"]
    require(
        length % parts == 0, f"data.context_length {length} cannot be split over {parts} devices of mesh.context"
    )
    heads, parts = config.model.heads, mesh.shape["tensor"]
    require(heads % parts == 0, f"model.heads {heads} cannot be split over {parts} devices of mesh.tensor")
    require(
        config.model.key_width % parts == 0,
        f"model.kv_heads {config.model.key_value_heads} of {config.model.head_channels} channels cannot be split "
        f"over {parts} devices of mesh.tensor",
    )
    parts = mesh.shape["fsdp"] * mesh.shape["context"]
    for width in config.model.coder_channels if config.model.patch_coder == "unet" else ():
        require(
            width % parts == 0 and width % mesh.shape["tensor"] == 0,
            f"{width} channels of the U-Net cannot be split over {parts} devices of mesh.fsdp and mesh.context, or "
            f"{mesh.shape['tensor']} of tensor: change the mesh, or model.unet_channels",
        )


def unsplit_heads(tensor: int, config: Run) -> list[str]:
    """A line that says which heads every device of the mesh axis `tensor` has; none where all are split."""
    if not isinstance(config, Config):
        return []
    model = config.model
    split = head_split(model.heads, model.key_value_heads, tensor)
    if split.keys:
        return []
    more = "" if split.queries else f", and computes attention of all {model.heads} heads"
    return [
        f"model.kv_heads {model.key_value_heads} does not divide by mesh.tensor {tensor}: every device of tensor "
        f"holds all keys and values{more}"
    ]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices, or over those given; several slices follow each other along `data`.

    Raises:
        ConfigError: the axes' product is not the number of devices, or `data` not a multiple of the slices.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = [getattr(config, axis) for axis in AXES]
    fixed = math.prod(n for n in sizes if n != -1)
    if -1 in sizes:
        require(len(devices) % fixed == 0, f"mesh axes {fixed} do not divide {len(devices)} devices")
        sizes[sizes.index(-1)] = len(devices) // fixed
    shape = " × ".join(f"{axis} {n}" for axis, n in zip(AXES, sizes, strict=True))
    require(math.prod(sizes) == len(devices), f"the mesh ({shape}) does not cover {len(devices)} devices")
    slices = count_slices(devices)
    require(
        sizes[0] % slices == 0,
        f"mesh.data {sizes[0]} must be a multiple of the {slices} slices: only replicas may lie on different ones",
    )
    within = [sizes[0] // slices, *sizes[1:]]

    def arrange(split: bool) -> np.ndarray:
        if slices == 1:
            return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=split)
        across = [slices, 1, 1, 1]
        return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=split)

    try:
        arranged = arrange(split=False)
    except NotImplementedError:  # no axis of the TPU's torus, nor several, is as long as one of the mesh
        arranged = arrange(split=True)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def count_slices(devices: Sequence[Any]) -> int:
    """How many TPU slices the devices belong to; 1 where they are no TPUs."""
    return len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"} or {0})


def reach_all(mesh: Mesh) -> None:
    """Adds up over every group of devices that axes of the mesh make, and returns when all have answered.

    Connections between processes are made at a group's first collective. Gloo gives up where the processes of a
    group come to it more than 30 s apart, as they may after compiling a step; so this comes before anything slow.

    Raises:
        jax.errors.JaxRuntimeError: a process cannot be reached.
    """
    axes = [axis for axis in AXES if mesh.shape[axis] > 1]
    groups = [group for n in range(1, len(axes) + 1) for group in itertools.combinations(axes, n)]

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P(AXES), out_specs=P(AXES))
    def sums(one: jax.Array) -> list[jax.Array]:
        return [jax.lax.psum(one, group) for group in groups]

    ones = jax.make_array_from_callback(
        (mesh.size,), NamedSharding(mesh, P(AXES)), lambda _: np.ones(1, np.float32)
    )
    jax.block_until_ready(sums(ones))
