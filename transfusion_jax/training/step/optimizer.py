"""A run's optimizer for each part of the parameters, and its learning rate, by which the step multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from transfusion_jax.config import OPTIMIZERS, RATE_SCHEDULES, OptimizerConfig
from transfusion_jax.parallel.sharding import AxisNames, axis_names


def make_optimizer(
    config: OptimizerConfig, label: Callable[[tuple], str], params: Any, axes: AxisNames
) -> optax.GradientTransformation:
    """For each label its update, clipped by the norm over its own gradients.

    Args:
        config: the settings.
        label: names each parameter's optimizer by path: "adamw" (the config's, whichever it is: checkpoints
            have this name), "discriminator" (the same, apart) or "frozen".
        params: the parameters, or their shapes.
        axes: see `Task.axes`.
    """
    decayed = jax.tree_util.tree_map_with_path(lambda path, p: is_matrix(axis_names(axes, path, p.ndim)), params)
    clip = optax.clip_by_global_norm(config.gradient_clip) if config.gradient_clip else optax.identity()
    clipped = optax.chain(clip, OPTIMIZERS[config.name](config, decayed))
    labels = jax.tree_util.tree_map_with_path(lambda path, _: label(path), params)
    if set(jax.tree.leaves(labels)) == {"adamw"}:
        return clipped
    each = {"adamw": clipped, "discriminator": clipped, "frozen": optax.set_to_zero()}
    return optax.partition(each, labels)


def learning_rate(config: OptimizerConfig, steps: int) -> Callable[[jax.Array], jax.Array]:
    """The rate of step 0, 1, …; see `rate_schedules`."""
    schedule = RATE_SCHEDULES[config.schedule](config, steps)
    return lambda step: schedule(step + 1)


def is_matrix(axes: tuple[str, ...]) -> bool:
    """Whether a parameter has two axes besides that of the layers and is no norm's: those decay."""
    return len([name for name in axes if name not in ("layers", "norm")]) >= 2
