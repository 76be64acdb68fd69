"""Images for GenEval's prompts, in the folders that its own scorer (github.com/djghosh13/geneval) reads.

00000/metadata.jsonl      the first line of evaluation_metadata.jsonl
00000/samples/0000.png    images of its prompt
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transfusion_jax.config import ConfigError, ModelConfig, require
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Text
from transfusion_jax.evaluation.pictures import draw_captions
from transfusion_jax.generation.interleaved import rows_at_a_time
from transfusion_jax.generation.png import write_png
from transfusion_jax.model.transfusion import Params
from transfusion_jax.parallel.processes import first
from transfusion_jax.storage.atomic import write_whole
from transfusion_jax.tasks.families import ModelTask

IMAGES = 4  # of each prompt, as in the paper (arXiv 2310.11513)


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """The lines of an `evaluation_metadata.jsonl`.

    Raises:
        ConfigError: there is no such file, or a line of it is no object with `prompt` and `tag`.
    """
    require(path.is_file(), f"there is no file {path}")
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
        good = isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("prompt", "tag"))
        require(good, f"{path}, line {number}: it needs a prompt and a tag")
        found.append(value)
    require(bool(found), f"{path} holds no prompts")
    return found


def write_images(
    task: ModelTask,
    params: Params,
    codec: Codec,
    lines: list[dict[str, Any]],
    output: Path,
    count: int = IMAGES,
    grid: tuple[int, int] | None = None,
) -> Iterator[int]:
    """Draws `count` images for each line's prompt into `output`, which the scorer is then given; yields lines done.

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts and images.
        lines: of an `evaluation_metadata.jsonl`.
        output: the folder that is written.
        count: images of each prompt.
        grid: rows and columns of patches of each image; None: see `Request.grid`.

    Raises:
        ConfigError: a prompt does not fit the context, or the model draws no images.
    """
    together = max(1, rows_at_a_time(task.config) // count)  # prompts
    for begin in range(0, len(lines), together):
        part = lines[begin : begin + together]
        texts = [Text(codec.tokenizer.encode(line["prompt"])) for line in part for _ in range(count)]
        images = draw_captions(task, params, codec, texts, task.config.seed, begin * count, [grid] * len(texts))
        for number, line in enumerate(part if first() else ()):
            folder = output / f"{begin + number:05}"
            write_whole(folder / "metadata.jsonl", json.dumps(line) + "\n")
            for sample, image in enumerate(images[number * count : (number + 1) * count]):
                write_png(folder / f"samples/{sample:04}.png", image)
        yield begin + len(part)


def square_grid(model: ModelConfig) -> tuple[int, int]:
    """Rows and columns of patches of the largest square that a model draws, or of the one shape that it draws."""
    if not model.max_side:
        return model.patch_grid
    side = math.isqrt(model.patches)
    return side, side
