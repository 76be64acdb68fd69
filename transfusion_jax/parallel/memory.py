"""How much memory this process's devices, and the process itself, hold."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GIB = 2**30
STATM = Path("/proc/self/statm")
OF_DEVICE = {"bytes_in_use": "in_use_gib", "peak_bytes_in_use": "peak_gib", "bytes_limit": "limit_gib"}


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
