"""How long a job is given to save between the signal that ends it and the kill."""

from __future__ import annotations

import math

from transfusion_jax import flops
from transfusion_jax.config import Config

WRITE_RATE = 200e6  # bytes per second that one host is taken to write to a bucket or a shared disk
MARGIN = 60  # seconds: the end of the running step, and what a save does besides writing
UNKNOWN = 300  # seconds, where no config says how large the state is


def grace_seconds(config: Config | None, hosts: int) -> int:
    """The margin and the time in which `hosts` write one checkpoint.

    Parameters, both moments and an average of the weights are taken as float32.
    """
    if config is None:
        return UNKNOWN
    copies = 3 + bool(config.optimizer.ema_decay)
    size = 4 * copies * flops.count_parameters(config.model).total
    return MARGIN + math.ceil(size / (hosts * WRITE_RATE))
