"""Perplexity of held-out texts, source by source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from transfusion_jax.config import Config, require
from transfusion_jax.data.batch import Batch
from transfusion_jax.data.datasets import Data
from transfusion_jax.data.documents import Source
from transfusion_jax.data.packing.shuffle import shuffled
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.evaluation.suites.loss import bytes_of, measured
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask


def run(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """`SOURCE_perplexity` and `SOURCE_bits_per_byte` of every held-out source of plain texts.

    A source is read by itself, whatever its weight: `evaluation.rows` rows, or each of its texts once where those
    are fewer.

    Raises:
        ConfigError: no plain texts are held out.
    """
    check(task.config, data)
    found: dict[str, float] = {}
    for source in _plain(data):
        rows = Once(source, task.config, data.codec.special)
        nats, tokens, size = 0.0, 0, 0
        for batch, losses in measured(task, params, rows, min(task.config.evaluation.rows, len(rows)), key):
            loss, weight = losses["loss_text"]
            bearing = weight > 0
            nats += float(np.sum(loss * weight, dtype=np.float64))
            tokens += int(np.sum(bearing))
            size += bytes_of(batch.targets[bearing], data.codec, batch.tokens[bearing])
        if tokens:
            found[f"{source.name}_perplexity"] = float(np.exp(nats / tokens))
        if size:
            found[f"{source.name}_bits_per_byte"] = nats / math.log(2) / size
    return found


def check(config: Config, data: Data) -> None:
    """Raises ConfigError where no plain texts are held out."""
    del config
    require(
        bool(_plain(data)), "the suite 'text' needs held-out texts without images: prepare some with --held-out"
    )


def _plain(data: Data) -> list[Source]:
    return [source for source in data.held_out.sources if len(source) and not source.pictured]


@dataclass(frozen=True)
class Once:
    """Rows that hold each text of a source once, in an order drawn from the seed, cut where a row ends."""

    source: Source
    config: Config
    special: SpecialTokens

    def __len__(self) -> int:
        return -(-int(self._ends[-1]) // self._capacity)

    def __getitem__(self, row: int) -> Batch:
        begin, end = row * self._capacity, (row + 1) * self._capacity
        first, last = np.searchsorted(self._ends, [begin, end - 1], side="right")
        places = range(first, min(last + 1, len(self.source)))
        return assemble(row, [self._piece(place, begin, end) for place in places], self.config, self.special)

    def _piece(self, place: int, begin: int, end: int) -> Piece:
        """The elements between two positions of the document at a place of the order."""
        before, after = int(self._ends[place - 1]) if place else 0, int(self._ends[place])
        start = max(begin - before, 0)
        document = self.source.documents[int(self._order[place])]
        return Piece(document, start, min(end, after) - before - start, source=0)

    @cached_property
    def _order(self) -> np.ndarray:
        return shuffled(np.arange(len(self.source)), len(self.source), self.config.seed)

    @cached_property
    def _ends(self) -> np.ndarray:
        """Where each document ends, in elements, BOS counted: `[n]`."""
        return np.cumsum(np.asarray(self.source.documents.text_lengths, np.int64)[self._order] + 1)

    @property
    def _capacity(self) -> int:
        return self.config.data.text_capacity  # every element bears a loss


SUITE = Suite(run, check=check, version=2)
