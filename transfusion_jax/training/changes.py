"""What may change between a run and its continuation, and what a change of recipe comes to."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from transfusion_jax import config
from transfusion_jax.config import ConfigError, Run, require
from transfusion_jax.training.step.optimizer import learning_rate
from transfusion_jax.training.step.state import RunContext

FACTS = ("data_hash", "codec")  # what must stay the same beside the config's identity


def check_names(new: Run, accepted: Collection[str]) -> None:
    """Raises ConfigError where a name that is accepted is no field of the recipe."""
    fields = {*config.identity(new), *FACTS}
    for name in accepted:
        require(name in fields, f"--accept-changes {name}: no such field; {config.nearest(name, fields)}")


def accepted_changes(
    old: Run,
    old_facts: dict[str, Any],
    context: RunContext,
    accepted: Collection[str],
    run: str,
    notes: Collection[str] = (),
) -> dict[str, str]:
    """The changes of recipe between two runs, `{field: "old -> new"}`, all of them accepted.

    Args:
        old: the config of the run that is gone on with.
        old_facts: its manifest.
        context: the run that is asked for.
        accepted: names of fields that may change.
        run: what the run is called, for the message.
        notes: lines that say what the changes come to, for the message.

    Raises:
        ConfigError: a change is not accepted.
    """
    facts, changes = context.facts, config.identity_changes(old, context.config)
    changes |= {name: f"{old_facts[name]} -> {facts[name]}" for name in FACTS if old_facts[name] != facts[name]}
    refused = [name for name in changes if name not in accepted]
    if refused:
        lines = "\n  ".join([*(f"{name}: {changes[name]}" for name in refused), *notes])
        raise ConfigError(
            f"{run} was started with another recipe, and going on keeps it:\n  {lines}\n"
            f"change back, accept by name with --accept-changes {','.join(refused)}, or train in a new --workdir"
        )
    return changes


def rate_notes(old: Run, new: Run, step: int) -> list[str]:
    """How a change of recipe moves the learning rate of the step after `step`, and the alternatives."""
    before, after = (float(learning_rate(run.optimizer, run.steps)(jnp.int32(step))) for run in (old, new))
    if math.isclose(before, after, rel_tol=1e-5) or not 0 < step < new.steps:
        return []
    hold = (f"optimizer.{name}" for name in ("learning_rate", "final_learning_rate"))
    return [
        f"learning rate of step {step + 1:,}: {before:.3g} by the old recipe, {after:.3g} by the new one, which "
        f"falls until step {new.steps:,}",
        f"to keep the old one, accept these as well: {' '.join(f'--config.{name}={before:.3g}' for name in hold)}",
        "to warm up to a new one, train in a new --workdir with --init-from this run",
    ]
