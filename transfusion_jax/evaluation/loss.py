"""Losses on held-out documents, with the same rows and the same noise each time."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import jax
import numpy as np

from transfusion_jax.config import require
from transfusion_jax.data.batch import Batch, stack
from transfusion_jax.data.load import Codec, Data
from transfusion_jax.data.stream import Rows, make_rows
from transfusion_jax.model.transfusion import Params
from transfusion_jax.parallel.sharding import split, to_host
from transfusion_jax.training.tasks import ModelTask

Losses = dict[str, tuple[np.ndarray, np.ndarray]]  # by name: losses and their weights


def run(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """`loss`, `loss_text`, `loss_image`, and `bits_per_byte` of the held-out texts that come without images."""
    config = task.config
    rows = make_rows(data.held_out, config, data.codec.special)
    plain = [i for i, s in enumerate(data.held_out.sources) if not s.pictured]
    sums: dict[str, np.ndarray] = {}
    plain_nats, plain_bytes = 0.0, 0
    for batch, losses in measured(task, params, rows, config.evaluation.rows, key):
        add_up(sums, {name: part for name, part in losses.items() if "/" not in name})
        loss, weight = losses["loss_text"]
        here = weight * np.isin(batch.source, plain)
        plain_nats += float(np.sum(loss * here))
        plain_bytes += bytes_of(batch.targets[here > 0], data.codec)
    results = means(sums)
    if "loss" not in results:
        results["loss"] = results["loss_text"] + config.image_loss_weight * results["loss_image"]
    if plain_bytes:
        results["bits_per_byte"] = plain_nats / math.log(2) / plain_bytes
    return results


def run_images(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """`loss_image` on the rows and with the noise of `run`; of latents by noise, too, as training logs it.

    Raises:
        ConfigError: the model sees no images.
    """
    require(task.config.model.images != "none", "'images' needs images, and this is a model of text alone")
    rows, sums = make_rows(data.held_out, task.config, data.codec.special), dict[str, np.ndarray]()
    for _, losses in measured(task, params, rows, task.config.evaluation.rows, key):
        add_up(sums, {name: part for name, part in losses.items() if name.startswith("loss_image")})
    return means({name: total for name, total in sums.items() if total[1]})  # of noise that there was


def measured(
    task: ModelTask, params: Params, rows: Rows, count: int, key: jax.Array
) -> Iterator[tuple[Batch, Losses]]:
    """Full batches that hold the first so many rows, with their losses."""
    for first in range(0, count, size := task.config.batch_rows):
        batch = stack([rows[row] for row in range(first, first + size)])
        yield batch, to_host(_losses(task, params, batch, key))


def add_up(sums: dict[str, np.ndarray], losses: Losses) -> None:
    """Adds the sum of the losses and of their weights, `[2]`, to those of each name."""
    for name, (loss, weight) in losses.items():
        sums[name] = sums.get(name, 0) + np.array((np.sum(loss * weight), np.sum(weight)), np.float64)


def means(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """What was added up, as means; 0 where there was nothing."""
    return {name: float(total / count) if count else 0.0 for name, (total, count) in sums.items()}


def bytes_of(targets: np.ndarray, codec: Codec) -> int:
    """UTF-8 bytes that predicted tokens `[n]` stand for."""
    return len(codec.tokenizer.decode(targets[targets < codec.tokenizer.size]).encode())


@functools.partial(jax.jit, static_argnums=0)
def _losses(task: ModelTask, params: Params, batch: Batch, key: jax.Array) -> dict:
    return task.held_out(params, jax.tree.map(lambda x: split(x, "batch"), batch), key)
