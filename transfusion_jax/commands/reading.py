"""What every command that reads a trained model shares: its flags, and finding the weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transfusion_jax.cache import keep_programs
from transfusion_jax.config import Config, ConfigError
from transfusion_jax.errors import CheckpointError
from transfusion_jax.model.transfusion import Params
from transfusion_jax.storage import place
from transfusion_jax.training.checkpoint import Checkpoints, DamagedCheckpoint, to_devices
from transfusion_jax.training.tasks import ModelTask, make_task
from transfusion_jax.training.workdir import Workdir


def add_reading_flags(parser: argparse.ArgumentParser) -> None:
    """`--workdir`, `--step` and `--weights`."""
    parser.add_argument("--workdir", type=place, required=True, help="a run's directory")
    parser.add_argument("--step", default="latest", help="checkpoint: N, latest (default) or best")
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="which weights (default: ema where the run keeps an average)",
    )


def choose_weights(arguments: argparse.Namespace) -> tuple[Workdir, Config, str]:
    """The run that the flags name, its config, and which of its weights are meant, "ema" or "raw".

    Raises:
        ConfigError: no run, or no average of the weights.
    """
    workdir = Workdir(arguments.workdir)
    config = workdir.config()
    weights = arguments.weights or ("ema" if config.optimizer.ema_decay else "raw")
    if weights == "ema" and not config.optimizer.ema_decay:
        raise ConfigError("this run kept no average of its weights (optimizer.ema_decay is 0): use --weights raw")
    return workdir, config, weights


def read_model(arguments: argparse.Namespace, say: Callable) -> tuple[ModelTask, Params, Workdir, int, str]:
    """The task, its weights, the workdir, and which step and weights were chosen, which is also said.

    Raises:
        ConfigError: no run, no such checkpoint, or no average of the weights.
    """
    workdir, config, weights = choose_weights(arguments)
    keep_programs()
    task = make_task(config)
    with Checkpoints(workdir.checkpoints) as checkpoints, naming_others(checkpoints):
        step = checkpoints.find(arguments.step)
        params = checkpoints.weights(step, weights, to_devices(task.model.abstract_params()))
    say(f"{workdir.path}: step {step} of {config.steps}, {weights} weights")
    return task, params, workdir, step, weights


@contextmanager
def naming_others(checkpoints: Checkpoints) -> Iterator[None]:
    """Raises CheckpointError for a damaged checkpoint, and names those that could be read in its place."""
    try:
        yield
    except DamagedCheckpoint as error:
        others = ", ".join(str(other) for other in checkpoints.steps if other != error.step) or "there is none"
        raise CheckpointError(f"{error}; choose another --step: {others}") from error
