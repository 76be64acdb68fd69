"""Evaluation suites: a name, and a function from weights to numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax

from transfusion_jax.data.load import Data
from transfusion_jax.evaluation import captions, digits, edits, loss, shapes, text
from transfusion_jax.model.transfusion import Params
from transfusion_jax.training.tasks import ModelTask


class Run(Protocol):
    """What a suite does; the same weights, data and key give the same numbers."""

    def __call__(self, task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
        """Metrics by name."""
        ...


@dataclass(frozen=True)
class Suite:
    """A named evaluation."""

    name: str
    run: Run


ALL = (
    Suite("loss", loss.run),
    Suite("text", text.run),
    Suite("images", loss.run_images),
    Suite("captions", captions.run),
    Suite("digits", digits.run),
    Suite("edits", edits.run),
    Suite("shapes", shapes.run),
)
SUITES = {suite.name: suite for suite in ALL}
