"""Every `loop.sample_every` steps: a sheet of images drawn for held-out captions."""

from __future__ import annotations

from typing import Any

from transfusion_jax.data.datasets import Data
from transfusion_jax.data.documents import Text
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
        if prompts := held_out_captions(data, IMAGES):
            sheet = grid(draw_images(task, params, data.codec, prompts, seed=context.config.seed), COLUMNS)
            monitor.image(step, "samples", sheet)
            if processes.first():
                write_png(workdir.samples / f"{step:08d}.png", sheet)
        return {}

    return Hook(context.config.loop.sample_every, sample)


def held_out_captions(data: Data, count: int) -> list[str]:
    """Different captions of held-out pairs."""
    texts = dict.fromkeys(
        data.codec.tokenizer.decode(segment.tokens)
        for document in data.held_out.pairs(4 * count)
        for segment in document.segments
        if isinstance(segment, Text)
    )
    return list(texts)[:count]
