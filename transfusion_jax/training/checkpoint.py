"""Checkpoints: Orbax behind a few functions, so that its API is named here alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from transfusion_jax.config import ConfigError
from transfusion_jax.training.state import State

BEST = "loss"  # the evaluation metric, lower is better, that `best` means

logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax logs each save and load in a dozen lines


class Checkpoints:
    """The checkpoints of one run; closes like a file.

    Args:
        directory: where they lie, one folder per step.
        keep: how many of the newest stay, beside the best one.
    """

    def __init__(self, directory: Path, keep: int = 3):
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=_best_metric, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def save(self, state: State, next_row: int, metrics: dict[str, float] | None) -> None:
        """Begins to save in the background; a save still under way is awaited first.

        Args:
            state: copied off the devices before this returns.
            next_row: the first row that has not been trained on.
            metrics: evaluation results of this very step, if there are any.
        """
        step = int(state.step)
        if step in self.steps:
            return
        self._checkpointer.save_async(
            step, _as_dict(state), metrics=metrics, custom_metadata={"next_row": next_row}
        )

    def wait(self) -> None:
        """Returns once the last save lies on disk, complete."""
        self._checkpointer.wait()

    def restore(self, step: int, abstract: State) -> tuple[State, int]:
        """The whole state, on the shardings of `abstract`, and the next row."""
        loaded = self._checkpointer.load(step, _as_dict(abstract))
        metadata = self._checkpointer.metadata(step).custom_metadata
        if abstract.ema is None:
            loaded["ema"] = None
        return State(**loaded), int(metadata["next_row"])

    def weights(self, step: int, which: str, abstract: Any) -> Any:
        """One set of weights alone: `which` is "params" or "ema"."""
        context = ocp.Context()
        context.pytree_options.loading.partial_load = True
        with context:
            return self._checkpointer.load(step, {which: abstract})[which]

    def find(self, step: str) -> int:
        """The step that `N`, `latest` or `best` names.

        Raises:
            ConfigError: there is no such checkpoint.
        """
        steps = self.steps
        if not steps:
            raise ConfigError("the workdir holds no checkpoint yet: train first")
        named: dict[str, Callable[[], int]] = {"latest": lambda: steps[-1], "best": self._best_step}
        if step in named:
            return named[step]()
        if not step.isdigit() or int(step) not in steps:
            raise ConfigError(f"no checkpoint {step}: there are {', '.join(map(str, steps))}, latest and best")
        return int(step)

    def _best_step(self) -> int:
        scored = {c.step: _best_metric(c.metrics) for c in self._checkpointer.checkpoints if c.metrics}
        if not scored:
            raise ConfigError("no checkpoint was evaluated, so none is best: use --step latest")
        return min(scored, key=lambda step: scored[step])


def _as_dict(state: State) -> dict[str, Any]:
    parts = {"step": state.step, "params": state.params, "optimizer": state.optimizer, "ema": state.ema}
    return {name: part for name, part in parts.items() if part is not None}


def _best_metric(metrics: dict[str, float]) -> float:
    return metrics[BEST]


def to_devices(abstract: Any) -> Any:
    """The same shapes, to be loaded onto this process's first device."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract)
