"""Every `loop.evaluate_every` steps: the suites of `evaluation.during_training`, on held-out data."""

from __future__ import annotations

from typing import Any

import jax

from transfusion_jax.config import SUITES, as_model, require
from transfusion_jax.data.datasets import Data
from transfusion_jax.training.loop import Hook, Monitor
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.step.state import RunContext


def hook(context: RunContext, data: Data, workdir: Workdir) -> Hook:
    """The hook of a run.

    Raises:
        ConfigError: a suite cannot be run on these data.
    """
    config, task = as_model(context.config), context.task
    read = {name for phase in config.data.mixtures for name in phase.weights}
    missing = [s.name for s in data.held_out.sources if s.name in read and not len(s)]
    require(
        not config.loop.evaluate_every or not missing,
        f"nothing of source {', '.join(missing)} is held out to evaluate on: prepare it with a larger "
        "--held-out, name a folder in data.sources.NAME.held_out, or set loop.evaluate_every to 0",
    )
    for name in config.evaluation.during_training if config.loop.evaluate_every else ():
        SUITES[name].check(config, data)  # not only at the first evaluation

    def evaluate(step: int, params: Any, monitor: Monitor) -> dict[str, float]:
        del step, monitor
        results: dict[str, float] = {}
        for name in config.evaluation.during_training:
            found = SUITES[name].run(task, params, data, jax.random.key(config.seed))
            prefix = "held_out" if name == "loss" else f"held_out/{name}"
            results |= {f"{prefix}/{metric}": value for metric, value in found.items()}
        return results

    return Hook(config.loop.evaluate_every, evaluate)
