"""The platform that a program is made for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend

from transfusion_jax.config import ModelConfig


def platform() -> str:
    """Where this will run: that of the mesh in scope, even if it is only compiled for; else the default backend.

    One of "cpu", "tpu", "cuda" and "rocm". JAX calls the last two "gpu": which it is, this process's GPUs say, and
    where it has none it is "cuda".
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = device.platform if device is not None else jax.default_backend()
    if name != "gpu":
        return name
    return "rocm" if "rocm" in get_backend().platform_version else "cuda"


def compute_capability() -> float | None:
    """That of this process's NVIDIA GPUs, such as 8.0 for Ampere; None where it has none."""
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    return None if capability is None else float(capability)


def compute_dtype(config: ModelConfig) -> jnp.dtype:
    """The dtype of activations: as configured, or by the platform that the program is made for."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    return jnp.dtype("float32" if platform() == "cpu" else "bfloat16")
