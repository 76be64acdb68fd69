"""Flags of XLA and libtpu: one table for each platform, put into the environment when the package is imported.

They are read when a backend first starts. What the user has set there stays. The GPU's are those that NVIDIA's
JAX-Toolbox names for training with sharded parameters, the TPU's those that MaxText trains with; XLA in jaxlib 0.10
and libtpu 0.0.42 know all of them. None has been measured here.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

XLA, LIBTPU = "XLA_FLAGS", "LIBTPU_INIT_ARGS"
VARIABLES = (XLA, LIBTPU)
THREADS = "NPROC"  # of XLA's pool on CPU; changes no result, so that processes may differ in it
THREADS_PER_DEVICE = 8
GPU_FILES = ("/dev/nvidia0",)
TPU_FILES = ("/dev/accel0", "/dev/vfio/0")
GPU_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


@dataclass(frozen=True)
class Flag:
    """One flag, and why it is set."""

    variable: str
    name: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"--{self.name}={self.value}"


FLAGS: dict[str, tuple[Flag, ...]] = {
    "cpu": (
        Flag(
            XLA,
            "xla_cpu_experimental_ynn_fusion_type",
            "",
            "these fusions once computed batched gradients wrongly: docs/decisions.md",
        ),
        Flag(
            XLA,
            "xla_cpu_collective_timeout_seconds",
            "600",
            "a busy process may still compile; by default it has 30",
        ),
        Flag(XLA, "xla_cpu_collective_call_terminate_timeout_seconds", "600", "likewise"),
    ),
    "gpu": (
        Flag(XLA, "xla_gpu_enable_latency_hiding_scheduler", "true", "computes while collectives are under way"),
        Flag(
            XLA,
            "xla_gpu_enable_while_loop_double_buffering",
            "true",
            "collectives of a layer run beside another layer",
        ),
        Flag(XLA, "xla_gpu_enable_pipelined_all_gather", "true", "the next layer's parameters come meanwhile"),
        Flag(XLA, "xla_gpu_enable_pipelined_reduce_scatter", "true", "the last layer's gradients leave meanwhile"),
        Flag(XLA, "xla_gpu_enable_pipelined_all_reduce", "true", "so do those that replicas add up"),
        Flag(XLA, "xla_gpu_all_gather_combine_threshold_bytes", "134217728", "one collective for a layer's leaves"),
        Flag(XLA, "xla_gpu_reduce_scatter_combine_threshold_bytes", "134217728", "likewise"),
        Flag(XLA, "xla_gpu_all_reduce_combine_threshold_bytes", "134217728", "likewise"),
    ),
    "tpu": (
        Flag(LIBTPU, "xla_enable_async_all_gather", "true", "parameters come while something is computed"),
        Flag(LIBTPU, "xla_enable_async_all_reduce", "true", "gradients are added up while something is computed"),
        Flag(LIBTPU, "xla_tpu_enable_async_collective_fusion", "true", "collectives run beside a fusion"),
        Flag(LIBTPU, "xla_tpu_enable_async_collective_fusion_fuse_all_gather", "true", "all-gathers, too"),
        Flag(LIBTPU, "xla_tpu_enable_async_collective_fusion_multiple_steps", "true", "beside several of them"),
        Flag(LIBTPU, "xla_tpu_overlap_compute_collective_tc", "true", "both on the same core"),
        Flag(LIBTPU, "xla_tpu_enable_data_parallel_all_reduce_opt", "true", "overlaps all-reduces between slices"),
        Flag(LIBTPU, "xla_tpu_data_parallel_opt_different_sized_ops", "true", "of leaves of all sizes"),
    ),
}


def apply(platform: str | None = None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds the flags of a platform (by default the one that JAX will take) and of the CPU beside it.

    Must come before JAX's first use of a device. What is set already stays as it is.
    """
    for flag in flags_of(platform or expected_platform()):
        words = environment.get(flag.variable, "").split()
        if flag.name not in [word.lstrip("-").partition("=")[0] for word in words]:
            environment[flag.variable] = " ".join([*words, str(flag)])
    devices = re.search(r"--xla_force_host_platform_device_count=(\d+)", environment.get(XLA, ""))
    if (
        devices and int(devices[1]) > 1
    ):  # on CPU a collective holds a thread until all devices have come to it: docs/decisions.md
        environment.setdefault(THREADS, str(THREADS_PER_DEVICE * int(devices[1])))


def flags_of(platform: str) -> tuple[Flag, ...]:
    """The flags of a platform, and of the CPU, on which something is computed everywhere."""
    return FLAGS["cpu"] + (FLAGS.get(platform, ()) if platform != "cpu" else ())


def in_force() -> dict[str, str]:
    """The variables as they are, those that are set; a run's manifest keeps them."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def expected_platform() -> str:
    """The platform that JAX will take, without starting it: "cpu", "gpu", "tpu", or what JAX_PLATFORMS names."""
    told = os.environ.get("JAX_PLATFORMS", "").partition(",")[0]
    if told:
        return "gpu" if told == "cuda" else told
    if _exists(TPU_FILES) and _installed(("libtpu",)):
        return "tpu"
    return "gpu" if _exists(GPU_FILES) and _installed(GPU_PLUGINS) else "cpu"


def _exists(files: tuple[str, ...]) -> bool:
    return any(Path(name).exists() for name in files)


def _installed(modules: tuple[str, ...]) -> bool:
    return any(importlib.util.find_spec(name) is not None for name in modules)
