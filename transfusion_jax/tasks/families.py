"""How a model sees and predicts images (`model.images`): each function makes the task of a config."""

from __future__ import annotations

from transfusion_jax.config import Config
from transfusion_jax.tasks.next_token import TokenTask
from transfusion_jax.tasks.transfusion import TransfusionTask

ModelTask = TransfusionTask | TokenTask


def latents(config: Config) -> TransfusionTask:
    """Images are denoised: Transfusion."""
    return TransfusionTask(config)


def codes(config: Config) -> TokenTask:
    """Images are tokens too, codes of an autoencoder: Chameleon."""
    return TokenTask(config)


def none(config: Config) -> TokenTask:
    """There are none: text alone."""
    return TokenTask(config)
