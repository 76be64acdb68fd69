"""Learning rates: each function makes the optax schedule of a run, whose steps count from 1."""

from __future__ import annotations

import optax

from transfusion_jax.config import OptimizerConfig


def cosine(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """A linear warm-up to the peak, then a cosine to the final rate at the last step (paper, section 4.1)."""
    peak, warmup = config.learning_rate, config.warmup_steps
    warmup = min(warmup, steps)
    # optax asks for a cosine of one step at least, even where the warm-up takes all steps.
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup, max(steps, warmup + 1), end_value=config.final_learning_rate
    )


def constant(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """A linear warm-up to the peak, and no decay."""
    return optax.warmup_constant_schedule(0.0, config.learning_rate, min(config.warmup_steps, steps))
