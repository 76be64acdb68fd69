"""What a run computes on: its devices, how fast they can be, and how much memory is held there."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from transfusion_jax.config import ConfigError
from transfusion_jax.parallel.processes import process_count

# Dense peak by device kind, FLOP/s in bfloat16, from the vendors' data sheets.
PUBLISHED_PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
ACCELERATOR_FILES = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")
GIB = 2**30
STATM = Path("/proc/self/statm")
OF_DEVICE = {"bytes_in_use": "in_use_gib", "peak_bytes_in_use": "peak_gib", "bytes_limit": "limit_gib"}


def describe_devices() -> str:
    """Backend, devices and processes in one line."""
    devices = jax.devices()
    processes = jax.process_count()
    line = f"backend {jax.default_backend()}, {len(devices)} device(s): {devices[0].device_kind}"
    return line + (f", {processes} processes" if processes > 1 else "")


def check_backend(allow_cpu: bool) -> None:
    """Refuses to compute on the CPU of a machine whose accelerator JAX does not see.

    Setting JAX_PLATFORMS=cpu counts as being told to.

    Raises:
        ConfigError: with what to do.
    """
    told = allow_cpu or os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
    if jax.default_backend() != "cpu" or told:
        return
    visible = [name for name in ACCELERATOR_FILES if Path(name).exists()]
    if visible:
        raise ConfigError(
            f"this machine has an accelerator ({visible[0]}) and JAX runs on its CPU: install the lock for it "
            "(requirements/cuda.txt or requirements/tpu.txt), or pass --allow-cpu"
        )


def missing_backend() -> str:
    """What is wrong with JAX_PLATFORMS where JAX cannot do what it says; empty where it can."""
    told = os.environ.get("JAX_PLATFORMS", "")
    if not told or process_count() > 1:  # with others, JAX may wait for them
        return ""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that there is one, and says nothing
        why = " ".join(str(error).split())[:200] or "no such devices are here"
        return f"JAX_PLATFORMS is {told[:80]}: {why}; unset it, set it to cpu, or install what it needs"
    return ""


def peak_flops(device: Any) -> tuple[float, str]:
    """FLOP/s that a device can reach, and whether that is "published" or "measured" (a float32 matrix product)."""
    if device.device_kind in PUBLISHED_PEAK:
        return PUBLISHED_PEAK[device.device_kind], "published"
    return measured_peak(), "measured"


def measured_peak(size: int = 1024, rounds: int = 6) -> float:
    """FLOP/s of a float32 matrix product on the default device, the best of a few rounds."""
    product = jax.jit(jnp.dot)
    x = jnp.ones((size, size))
    product(x, x).block_until_ready()
    best = math.inf
    for _ in range(rounds):
        begin = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def memory(devices: Sequence[Any]) -> dict[str, float]:
    """GiB by name: of the fullest device, where the backend knows (CPU's does not), and of the process.

    Loader processes are not counted.
    """
    stats = [device.memory_stats() or {} for device in devices]
    of_devices = {
        name: max(one[key] for one in stats) / GIB
        for key, name in OF_DEVICE.items()
        if all(key in one for one in stats)
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    of_process = {"host_peak_gib": peak / GIB}
    if STATM.exists():
        of_process["host_gib"] = int(STATM.read_text().split()[1]) * resource.getpagesize() / GIB
    return of_devices | of_process


def describe_memory(values: dict[str, float]) -> str:
    """A line for the user."""
    if "in_use_gib" not in values:
        return (
            f"memory: the process holds {values.get('host_gib', 0):.2f} GiB, {values['host_peak_gib']:.2f} at most"
        )
    limit = f" of {values['limit_gib']:.2f}" if "limit_gib" in values else ""
    peak = f", {values['peak_gib']:.2f} at most" if "peak_gib" in values else ""
    return f"memory: {values['in_use_gib']:.2f}{limit} GiB per device{peak}"
