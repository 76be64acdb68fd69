"""How long a job is given to save between the signal that ends it and the kill."""

from __future__ import annotations

import math

import jax

from transfusion_jax.config import Config, Run
from transfusion_jax.planning.memory import state_shapes
from transfusion_jax.planning.plan import HOST_RATE
from transfusion_jax.tasks.base import make_task

MARGIN = 60  # seconds: the end of the running step, and what a save does besides writing
SLOWER = 2  # a job is given this many times the writing time that `transfusion plan` expects
UNKNOWN = 300  # seconds, where no config is known, and for autoencoders, whose states are small


def grace_seconds(config: Run | None, hosts: int) -> int:
    """The margin and, twice, the time in which `hosts` write one checkpoint as `transfusion plan` counts."""
    if not isinstance(config, Config):
        return UNKNOWN
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state_shapes(make_task(config), config)))
    return MARGIN + math.ceil(SLOWER * size / (hosts * HOST_RATE))
