"""Perplexity of held-out texts, source by source."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import numpy as np

from transfusion_jax.config import ConfigError
from transfusion_jax.data.documents import Corpus, Source
from transfusion_jax.data.load import Data
from transfusion_jax.data.stream import Rows, make_rows
from transfusion_jax.evaluation.loss import bytes_of, measured
from transfusion_jax.model.transfusion import Params
from transfusion_jax.training.tasks import ModelTask


def run(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """`SOURCE_perplexity` and `SOURCE_bits_per_byte` of every held-out source of plain texts.

    A source is read by itself, whatever its weight: `evaluation.rows` rows, or each of its own once where there
    are fewer.

    Raises:
        ConfigError: no plain texts are held out.
    """
    found: dict[str, float] = {}
    for source in data.held_out.sources:
        if len(source) and not source.pictured:
            rows = _rows_of(source, task, data)
            count = min(task.config.evaluation.rows, rows.plans[0].rows)
            nats, tokens, size = 0.0, 0, 0
            for batch, losses in measured(task, params, rows, count, key):
                loss, weight = losses["loss_text"]
                once = weight * (batch.row < count)[:, None]
                nats += float(np.sum(loss * once, dtype=np.float64))
                tokens += int(np.sum(once > 0))
                size += bytes_of(batch.targets[once > 0], data.codec)
            found[f"{source.name}_perplexity"] = math.exp(nats / tokens)
            found[f"{source.name}_bits_per_byte"] = nats / math.log(2) / size
    if not found:
        raise ConfigError("the suite 'text' needs held-out texts without images: prepare some with --held-out")
    return found


def _rows_of(source: Source, task: ModelTask, data: Data) -> Rows:
    """The rows of one source alone."""
    mine = {source.name: replace(task.config.data.sources[source.name], weight=1.0)}
    config = replace(task.config, data=replace(task.config.data, sources=mine, phases={}))
    return make_rows(Corpus((source,)), config, data.codec.special)
