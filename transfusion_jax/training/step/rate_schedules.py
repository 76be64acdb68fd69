"""Learning rates: each function makes the optax schedule of a run, whose steps count from 1."""

from __future__ import annotations

import optax

from transfusion_jax.config import OptimizerConfig


def cosine(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """A linear warm-up to the peak, then a cosine to the final rate at the last step (paper, section 4.1)."""
    left = max(steps - config.warmup_steps, 1)  # optax asks for one, even where the warm-up takes all steps
    final = config.final_learning_rate / config.learning_rate
    return _warmed_up(config, steps, optax.cosine_decay_schedule(config.learning_rate, left, final))


def constant(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """A linear warm-up to the peak, and no decay."""
    return _warmed_up(config, steps, optax.constant_schedule(config.learning_rate))


def _warmed_up(config: OptimizerConfig, steps: int, then: optax.Schedule) -> optax.Schedule:
    """From 0 to the peak in `warmup_steps`, or in all steps where those are fewer.

    `optax.linear_schedule` computes `peak - peak (1 - n / warmup)`, which in float32 is wrong by 1e-4 at first.
    """
    warmup = min(config.warmup_steps, steps)
    return optax.join_schedules([lambda step: config.learning_rate * step / max(warmup, 1), then], [warmup])
