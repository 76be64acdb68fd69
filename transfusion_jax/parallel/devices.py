"""What a run computes on, said before anything else happens."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from transfusion_jax.config import ConfigError

ACCELERATOR_FILES = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")


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
