"""What an evaluation suite is: a function from weights to numbers, and how it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax

from transfusion_jax.config import Config
from transfusion_jax.data.datasets import Codec, Data
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask


class RunSuite(Protocol):
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
    """An evaluation; its name is that of the table `SUITES`."""

    run: RunSuite
    size: str = "rows"  # the field of `evaluation` that says on how much: "rows" or "images"
    draws: bool = False
    prompts: Callable[[Config, Codec], list[str]] | None = None  # of a suite whose prompts are not the data's
    check: Check = anything
    version: int = 1  # of what it measures: numbers of another are not taken for its own
    native_version: int = 0  # the same for models of images of any shape, where it differs
