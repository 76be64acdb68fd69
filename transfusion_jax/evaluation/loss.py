"""Losses on held-out documents, with the same rows and the same noise each time."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np

from transfusion_jax.data.batch import Batch, stack
from transfusion_jax.data.load import Codec, Data
from transfusion_jax.data.stream import make_rows
from transfusion_jax.model.transfusion import Params
from transfusion_jax.parallel.sharding import split, to_host
from transfusion_jax.training.tasks import ModelTask


def run(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """`loss`, `loss_text`, `loss_image`, and `bits_per_byte` of the held-out texts that come without images."""
    config = task.config
    rows = make_rows(data.held_out, config, data.codec.special)
    plain = [i for i, s in enumerate(data.held_out.sources) if not s.pictured]
    sums: dict[str, np.ndarray] = {}
    plain_nats, plain_bytes = 0.0, 0
    for first in range(0, config.evaluation.rows, config.batch_rows):
        batch = stack([rows[r] for r in range(first, first + config.batch_rows)])
        losses = to_host(_losses(task, params, batch, key))
        for name, (loss, weight) in losses.items():
            sums[name] = sums.get(name, 0) + np.array((np.sum(loss * weight), np.sum(weight)), np.float64)
        loss, weight = losses["loss_text"]
        here = weight * np.isin(batch.source, plain)
        plain_nats += float(np.sum(loss * here))
        plain_bytes += _bytes(batch.targets[here > 0], data.codec)
    results = {name: _ratio(*total) for name, total in sums.items()}
    if "loss" not in results:
        results["loss"] = results["loss_text"] + config.image_loss_weight * results["loss_image"]
    if plain_bytes:
        results["bits_per_byte"] = plain_nats / math.log(2) / plain_bytes
    return results


@functools.partial(jax.jit, static_argnums=0)
def _losses(task: ModelTask, params: Params, batch: Batch, key: jax.Array) -> dict:
    return task.held_out(params, jax.tree.map(lambda x: split(x, "batch"), batch), key)


def _bytes(targets: np.ndarray, codec: Codec) -> int:
    """UTF-8 bytes that predicted tokens stand for."""
    return len(codec.tokenizer.decode(targets[targets < codec.tokenizer.size]).encode())


def _ratio(total: float, count: float) -> float:
    return float(total / count) if count else 0.0
