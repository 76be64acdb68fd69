"""The task of a config: which losses its model is trained by."""

from __future__ import annotations

from transfusion_jax.config import Config
from transfusion_jax.tasks.next_token import TokenTask
from transfusion_jax.tasks.transfusion import TransfusionTask

ModelTask = TransfusionTask | TokenTask

TASKS: dict[str, type[ModelTask]] = {"latents": TransfusionTask, "codes": TokenTask, "none": TokenTask}


def make_task(config: Config) -> ModelTask:
    """What `model.images` asks for."""
    return TASKS[config.model.images](config)
