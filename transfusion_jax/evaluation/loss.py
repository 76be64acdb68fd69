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
from transfusion_jax.training.transfusion import TransfusionTask


def run(task: TransfusionTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """`loss`, `loss_text`, `loss_image`, and `bits_per_byte` of the held-out texts that come without images."""
    config = task.config
    rows = make_rows(data.held_out, config, data.codec.special)
    plain = [i for i, s in enumerate(data.held_out.sources) if not s.pictured]
    text = image = plain_nats = np.zeros(2)
    plain_bytes = 0
    for first in range(0, config.evaluation.rows, config.batch_rows):
        batch = stack([rows[r] for r in range(first, first + config.batch_rows)])
        token_loss, token_weight, image_loss = to_host(_losses(task, params, batch, key))
        text = text + (np.sum(token_loss * token_weight), np.sum(token_weight))
        image = image + (np.sum(image_loss * batch.image_weight), np.sum(batch.image_weight))
        here = token_weight * np.isin(batch.source, plain)
        plain_nats = plain_nats + np.sum(token_loss * here)
        plain_bytes += _bytes(batch.targets[here > 0], data.codec)
    results = {"loss_text": _ratio(*text), "loss_image": _ratio(*image)}
    results["loss"] = results["loss_text"] + config.image_loss_weight * results["loss_image"]
    if plain_bytes:
        results["bits_per_byte"] = float(plain_nats[0]) / math.log(2) / plain_bytes
    return results


@functools.partial(jax.jit, static_argnums=0)
def _losses(task: TransfusionTask, params: Params, batch: Batch, key: jax.Array) -> tuple:
    tokens, image_loss, _ = task.element_losses(params, jax.tree.map(lambda x: split(x, "batch"), batch), key)
    return tokens.loss, tokens.weight, image_loss


def _bytes(targets: np.ndarray, codec: Codec) -> int:
    """UTF-8 bytes that predicted tokens stand for."""
    return len(codec.tokenizer.decode(targets[targets < codec.tokenizer.size]).encode())


def _ratio(total: float, count: float) -> float:
    return float(total / count) if count else 0.0
