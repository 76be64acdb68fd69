"""The device mesh: axes `data` (replicas), `fsdp` (parameters and batch split), `tensor` (heads and MLP split)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from transfusion_jax.config import MeshConfig, require

AXES = ("data", "fsdp", "tensor")


def check_rows(mesh: Mesh, batch_rows: int, accumulation: int) -> None:
    """Raises ConfigError where the rows of one part of a batch cannot be split evenly over the mesh."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    require(
        batch_rows // accumulation % ways == 0,
        f"batch_rows {batch_rows} in {accumulation} part(s) cannot be split over data × fsdp = {ways} devices: "
        "change batch_rows, accumulation or the mesh",
    )


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices, or over those given.

    Raises:
        ConfigError: the axes' product is not the number of devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = [getattr(config, axis) for axis in AXES]
    fixed = math.prod(n for n in sizes if n != -1)
    if -1 in sizes:
        require(len(devices) % fixed == 0, f"mesh axes {fixed} do not divide {len(devices)} devices")
        sizes[sizes.index(-1)] = len(devices) // fixed
    shape = " × ".join(f"{axis} {n}" for axis, n in zip(AXES, sizes, strict=True))
    require(math.prod(sizes) == len(devices), f"the mesh ({shape}) does not cover {len(devices)} devices")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
