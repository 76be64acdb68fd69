"""Losses on held-out documents, with the same rows and the same noise each time.

Rows are computed in parts as large as those of training, and their losses are added up: no number depends on the
size of a batch or of its parts. A loss that no row bears is left out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transfusion_jax.config import Config, ConfigError
from transfusion_jax.data.batch import Batch, abstract_batch, bytes_of_batch, stack
from transfusion_jax.data.datasets import Codec, Data
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.data.packing.packing import Room
from transfusion_jax.data.packing.plan import try_mixture
from transfusion_jax.data.row import empty_row
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.model.transfusion import Params
from transfusion_jax.parallel.sharding import split, to_host, ways
from transfusion_jax.tasks.base import in_parts, joined
from transfusion_jax.tasks.families import ModelTask

Losses = dict[str, tuple[np.ndarray, np.ndarray]]  # by name: losses and their weights


class EvaluationRows(Protocol):
    """Rows by number."""

    @property
    def special(self) -> SpecialTokens:
        """Those of the tokenizer."""
        ...

    def __getitem__(self, row: int) -> Batch:
        """A row, without the leading B."""
        ...


def run(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """`loss`, `loss_text`, `loss_image`, and `bits_per_byte` of the held-out texts that come without images.

    And `loss_image/size_0` to `size_2`, where images may have any shape: see `tasks.transfusion.size_buckets`.
    """
    config = task.config
    rows = make_rows(data.held_out, config, data.codec.special, version=data.row_plan)
    plain = [i for i, s in enumerate(data.held_out.sources) if not s.pictured]
    sums: dict[str, np.ndarray] = {}
    plain_nats, plain_bytes = 0.0, 0
    for batch, losses in measured(task, params, rows, config.evaluation.rows, key):
        add_up(sums, {name: part for name, part in losses.items() if "/noise_" not in name})
        loss, weight = losses["loss_text"]
        here = weight * np.isin(batch.source, plain)
        plain_nats += float(np.sum(loss * here, dtype=np.float64))
        plain_bytes += bytes_of(batch.targets[here > 0], data.codec, batch.tokens[here > 0])
    results = means(sums)
    if results and "loss" not in results:
        weights = {"loss_text": 1.0, "loss_image": config.image_loss_weight}
        results["loss"] = sum(weight * results[name] for name, weight in weights.items() if name in results)
    if plain_bytes:
        results["bits_per_byte"] = plain_nats / math.log(2) / plain_bytes
    return results


def check(config: Config, data: Data) -> None:
    """Raises ConfigError where the held-out documents make no rows, as where many of them fit none."""
    held_out = {source.name for source in data.held_out.sources if len(source)}
    try:
        for phase in config.data.mixtures:
            weights = {name: weight for name, weight in phase.weights.items() if name in held_out}
            if weights:
                try_mixture(data.held_out, weights, Room.of(config), config.seed)
    except ConfigError as error:
        raise ConfigError(f"the held-out documents make no rows: {error}") from error


def measured(
    task: ModelTask, params: Params, rows: EvaluationRows, count: int, key: jax.Array
) -> Iterator[tuple[Batch, Losses]]:
    """The first `count` rows and their losses, in batches of one size, the last of which is filled with padding."""
    config, size = task.config, batch_rows(task.config, count)
    padding = empty_row(0, config.data.context_length, config, rows.special)
    for first in range(0, count, size):
        found = [rows[row] for row in range(first, min(first + size, count))]
        batch = stack(found + [padding] * (size - len(found)))
        yield batch, to_host(_losses(task, params, batch, key))


def batch_rows(config: Config, count: int) -> int:
    """Rows of each batch in which `count` rows are measured: whole parts, about as many as training's."""
    part = part_rows(config, count)
    batches = -(-count // max(config.batch_rows, part))
    return -(-count // (batches * part)) * part


def part_rows(config: Config, count: int) -> int:
    """Rows computed at a time, of `count`: as in training, rounded up to what the mesh in scope splits evenly."""
    return -(-min(count, config.part_rows) // ways("batch")) * ways("batch")


def add_up(sums: dict[str, np.ndarray], losses: Losses) -> None:
    """Adds the sum of the losses and of their weights, `[2]`, to those of each name."""
    for name, (loss, weight) in losses.items():
        here = np.array((np.sum(loss * weight, dtype=np.float64), np.sum(weight, dtype=np.float64)))
        sums[name] = sums.get(name, 0) + here


def means(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """The sums as means; names without data are left out."""
    return {name: float(total / count) for name, (total, count) in sums.items() if count}


def bytes_of(targets: np.ndarray, codec: Codec, before: np.ndarray | None = None) -> int:
    """UTF-8 bytes that predicted tokens `[n]` stand for, `before` being the tokens that they follow.

    Tokens of one character that lie in two rows add in each the bytes that they hold. Behind BOS a text begins;
    without `before` none does.
    """
    special, tokenizer = codec.special, codec.tokenizer
    begins = np.zeros(targets.shape, bool) if before is None else before == special.bos
    text = (targets < tokenizer.size) & ~np.isin(targets, (special.bos, special.eos))
    kinds, counts = np.unique(np.stack([targets, begins])[:, text], axis=1, return_counts=True)
    each = [tokenizer.bytes_of(token, bool(first)) for token, first in kinds.T.tolist()]
    return sum(size * count for size, count in zip(each, counts.tolist(), strict=True))


def batch_bytes(config: Config) -> int:
    """Bytes of a batch of a training run's evaluation, which every device of the mesh holds whole."""
    return bytes_of_batch(abstract_batch(config, batch_rows(config, config.evaluation.rows)))


def lower(task: ModelTask, params: Params, mesh: Mesh) -> jax.stages.Lowered:
    """The program that a training run evaluates with on a mesh, of the shapes of its parameters."""
    rows = batch_rows(task.config, task.config.evaluation.rows)
    everywhere = NamedSharding(mesh, P())
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), abstract_batch(task.config, rows)
    )
    return _losses.lower(task, params, batch, jax.eval_shape(lambda: jax.random.key(0)))


@functools.partial(jax.jit, static_argnums=0)
def _losses(task: ModelTask, params: Params, batch: Batch, key: jax.Array) -> dict[str, Any]:
    """The losses of a batch of one or more parts."""

    def part(rows: Batch) -> dict[str, Any]:
        return task.held_out(params, jax.tree.map(lambda x: split(x, "batch"), rows), key)

    count = len(batch.row)
    parts = count // part_rows(task.config, count)
    if parts == 1:
        return part(batch)
    found: dict[str, Any] = joined(jax.lax.map(part, in_parts(batch, parts)))
    return found


SUITE = Suite(run, check=check, version=2, native_version=3)
