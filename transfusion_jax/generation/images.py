"""Drawing one image for each prompt."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from transfusion_jax.config import SamplingConfig
from transfusion_jax.data.datasets import Codec
from transfusion_jax.generation.interleaved import Request, generate
from transfusion_jax.generation.prompt import prompt_of
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.registry import ModelTask


def draw(
    task: ModelTask,
    params: Params,
    codec: Codec,
    prompts: list[str],
    seed: int,
    sampling: SamplingConfig | None = None,
) -> Float[np.ndarray, "S H W C"]:
    """One image for each prompt.

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts and images.
        prompts: texts that the images follow; a prompt may stand more than once.
        seed: image i depends on (seed, i, its prompt) alone, whatever is drawn beside it.
        sampling: how; by default the config's.

    Returns:
        `[len(prompts), H, W, channels]` in [−1, 1].

    Raises:
        ConfigError: a prompt does not fit the context, or the model draws no images.
    """
    requests = [Request(prompt_of(text, codec), "image", seed, number) for number, text in enumerate(prompts)]
    return np.stack([s.images[0] for s in generate(task, params, codec, requests, sampling)])
