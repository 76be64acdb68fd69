"""The task of a config: which losses its model is trained by."""

from __future__ import annotations

from transfusion_jax.config import IMAGES, Config
from transfusion_jax.tasks.next_token import TokenTask
from transfusion_jax.tasks.transfusion import TransfusionTask

ModelTask = TransfusionTask | TokenTask


def make_task(config: Config) -> ModelTask:
    """What `model.images` asks for."""
    task: ModelTask = IMAGES[config.model.images](config)
    return task
