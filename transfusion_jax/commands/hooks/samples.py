"""Every `loop.sample_every` steps: a sheet of images drawn for held-out captions, of their images' shapes."""

from __future__ import annotations

import itertools
from typing import Any

from transfusion_jax.config import ModelConfig
from transfusion_jax.data.datasets import Data
from transfusion_jax.generation.png import grid, write_png
from transfusion_jax.generation.single import draw_images
from transfusion_jax.parallel import processes
from transfusion_jax.training.loop import Hook, Monitor
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.step.state import RunContext

IMAGES, COLUMNS = 10, 5


def hook(context: RunContext, data: Data, workdir: Workdir) -> Hook:
    """The hook of a run."""
    task: Any = context.task

    def sample(step: int, params: Any, monitor: Monitor) -> dict[str, float]:
        if prompts := held_out_prompts(data, task.config.model, IMAGES):
            captions, grids = list(prompts), list(prompts.values())
            drawn = draw_images(task, params, data.codec, captions, context.config.seed, grids=grids)
            sheet = grid(drawn, COLUMNS)
            monitor.image(step, "samples", sheet)
            if processes.first():
                write_png(workdir.samples / f"{step:08d}.png", sheet)
        return {}

    return Hook(context.config.loop.sample_every, sample)


def held_out_prompts(data: Data, model: ModelConfig, count: int) -> dict[str, tuple[int, int] | None]:
    """Different captions of held-out pairs, and each one's grid of patches where that is to be told."""
    own_grid = model.max_side > 0 and not model.shape_marks
    found: dict[str, tuple[int, int] | None] = {}
    for text, image in (document.pair for document in data.held_out.pairs(4 * count)):
        caption = data.codec.tokenizer.decode(text.tokens)
        found.setdefault(caption, model.grid(*image.latent.shape[:2]) if own_grid else None)
    return dict(itertools.islice(found.items(), count))
