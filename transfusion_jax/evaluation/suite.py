"""Evaluation suites: a name, and a function from weights to numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax

from transfusion_jax.config import Config, EvaluationConfig
from transfusion_jax.data.datasets import Data
from transfusion_jax.evaluation import captions, digits, edits, frechet, loss, shapes, text
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.registry import ModelTask


class Run(Protocol):
    """What a suite does; the same weights, data and key give the same numbers."""

    def __call__(self, task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
        """Metrics by name."""
        ...


Check = Callable[
    [Config, Data], None
]  # raises ConfigError where the suite cannot be run, before any weights are needed


def anything(config: Config, data: Data) -> None:
    """For a suite that fits every model and all data."""


@dataclass(frozen=True)
class Suite:
    """A named evaluation."""

    name: str
    run: Run
    size: str  # the field of `evaluation` that says on how much
    draws: bool = False
    prompts: Callable[[EvaluationConfig], list[str]] | None = None  # of a suite whose prompts are not the data's
    check: Check = anything
    version: int = 1  # of what it measures: numbers of another are not taken for its own


ALL = (
    Suite("loss", loss.run, "rows", version=2),
    Suite("text", text.run, "rows", check=text.check, version=2),
    Suite("images", loss.run_images, "rows", check=loss.check_images, version=2),
    Suite("captions", captions.run, "images", check=captions.check),
    Suite("digits", digits.run, "images", True, lambda config: digits.prompts(config.images), digits.check),
    Suite("edits", edits.run, "images", True, lambda config: [t for _, _, t in edits.asked(config)], edits.check),
    Suite(
        "shapes", shapes.run, "images", True, lambda config: [p.caption for p in shapes.asked(config)], shapes.check
    ),
    Suite("frechet", frechet.run, "images", True, check=frechet.check),
)
SUITES = {suite.name: suite for suite in ALL}
