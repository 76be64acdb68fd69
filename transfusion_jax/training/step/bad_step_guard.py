"""Bad steps: which steps are not taken, and when there are too many of them.

A step is bad where its loss or gradients are not finite, or where they are a spike: above the mean of the last
accepted steps by more than so many standard deviations. A bad step keeps its number and its rows, and leaves
parameters, optimizer and average as they were. What is remembered lives in the training state, so that a restart
goes on counting.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transfusion_jax.config import GuardConfig

FINE, NOT_FINITE, SPIKE = range(3)
VERDICTS = ("fine", "not finite", "spike")


class Guard(NamedTuple):
    """What is remembered of the steps so far."""

    in_a_row: jax.Array  # bad steps since the last accepted one, int32
    skipped: jax.Array  # bad steps of the whole run, int32
    seen: jax.Array  # accepted steps of the whole run, int32
    recent: jax.Array  # loss and gradient norm of the last accepted steps, [window, 2], a ring


AXES = {"guard/recent": ("recent", "values")}


def new_guard(config: GuardConfig) -> Guard:
    """The guard before the first step."""
    window = 1 if config.spikes == "ignore" else config.spike_window
    zero = jnp.int32(0)
    return Guard(zero, zero, zero, jnp.zeros((window, 2)))


def judge_step(config: GuardConfig, guard: Guard, loss: jax.Array, norm: jax.Array) -> tuple[jax.Array, Guard]:
    """The verdict on a step, and the guard after it.

    Spikes are judged once the window is full.
    """
    values = jnp.stack([loss, norm]).astype(jnp.float32)
    finite = jnp.all(jnp.isfinite(values))
    spike = jnp.bool_(False)
    if config.spikes != "ignore":
        limit = guard.recent.mean(0) + config.spike_sigmas * guard.recent.std(0)
        spike = finite & (guard.seen >= len(guard.recent)) & jnp.any(values > limit)
    bad = ~finite | spike
    in_a_row = guard.in_a_row + 1
    if config.spikes == "stop":
        in_a_row = jnp.where(spike, config.max_in_a_row, in_a_row)
    ring = guard.recent.at[guard.seen % len(guard.recent)].set(values)
    after = Guard(
        jnp.where(bad, in_a_row, 0),
        guard.skipped + bad,
        guard.seen + ~bad,
        jnp.where(bad, guard.recent, ring),
    )
    return jnp.where(~finite, NOT_FINITE, jnp.where(spike, SPIKE, FINE)), after


def halted(config: GuardConfig, guard: Guard) -> jax.Array:
    """Whether no further step may be taken."""
    return guard.in_a_row >= config.max_in_a_row
