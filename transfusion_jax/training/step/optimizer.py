"""AdamW as the paper has it, without its learning rate: the step multiplies by that, from the step's number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transfusion_jax.config import OptimizerConfig
from transfusion_jax.parallel.sharding import AxisNames, axis_names


def make_optimizer(
    config: OptimizerConfig, label: Callable[[tuple], str], params: Any, axes: AxisNames
) -> optax.GradientTransformation:
    """For each label its update, clipped by the norm over its own gradients.

    Args:
        config: the settings.
        label: names each parameter's optimizer by path: "adamw", "discriminator" (the same, apart) or "frozen".
        params: the parameters, or their shapes.
        axes: see `Task.axes`.
    """
    decayed = jax.tree_util.tree_map_with_path(lambda path, p: is_matrix(axis_names(axes, path, p.ndim)), params)
    adamw = optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=config.first_moment),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
    clip = optax.clip_by_global_norm(config.gradient_clip) if config.gradient_clip else optax.identity()
    clipped = optax.chain(clip, adamw)
    labels = jax.tree_util.tree_map_with_path(lambda path, _: label(path), params)
    if set(jax.tree.leaves(labels)) == {"adamw"}:
        return clipped
    each = {"adamw": clipped, "discriminator": clipped, "frozen": optax.set_to_zero()}
    return optax.partition(each, labels)


def learning_rate(config: OptimizerConfig, steps: int) -> Callable[[jax.Array], jax.Array]:
    """The rate of step 0, 1, …: a linear warm-up to the peak, then a cosine to the final rate at the last step."""
    warmup = min(config.warmup_steps, steps)

    def rate(step: jax.Array) -> jax.Array:
        done = step + 1.0
        progress = jnp.clip((done - warmup) / max(steps - warmup, 1), 0, 1)
        fall = config.learning_rate - config.final_learning_rate
        cosine = config.final_learning_rate + fall * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(done < warmup, config.learning_rate * done / max(warmup, 1), cosine)

    return rate


def is_matrix(axes: tuple[str, ...]) -> bool:
    """Whether a parameter has two axes besides that of the layers and is no norm's: those decay."""
    return len([name for name in axes if name not in ("layers", "norm")]) >= 2
