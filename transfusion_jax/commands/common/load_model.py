"""What every command that reads a trained model shares: its flags, and finding the weights."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from transfusion_jax.config import Config, ConfigError, MeshConfig
from transfusion_jax.errors import CheckpointError
from transfusion_jax.model.transfusion import Params
from transfusion_jax.parallel import processes
from transfusion_jax.parallel.mesh import check_batch, make_mesh
from transfusion_jax.parallel.sharding import state_shardings
from transfusion_jax.storage.cache_dirs import keep_programs
from transfusion_jax.tasks.base import make_task
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.training.checkpoint.errors import DamagedCheckpoint
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.checkpoint.reader import to_devices
from transfusion_jax.training.run_dir import Workdir


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


def read_model(
    arguments: argparse.Namespace, log: Callable, mesh: Callable[[ModelTask], Mesh] | None = None
) -> tuple[ModelTask, Params, Workdir, int, str]:
    """The task, its weights, the workdir, and which step and weights were chosen, which is also said.

    Args:
        arguments: the flags.
        log: called with a line for the user.
        mesh: what the weights are split over; without one they are on this process's first device.

    Raises:
        ConfigError: no run, no such checkpoint, or no average of the weights.
    """
    workdir, config, weights = choose_weights(arguments)
    keep_programs()
    task = make_task(config)
    with Checkpoints(workdir.checkpoints) as checkpoints, naming_others(checkpoints):
        abstract = shared(task, mesh(task)) if mesh else to_devices(task.model.abstract_params())
        step, params = checkpoints.read(
            arguments.step, lambda step: (step, checkpoints.weights(step, weights, abstract))
        )
    log(f"{workdir.path}: step {step} of {config.steps}, {weights} weights")
    longest, context = workdir.longest_context(), config.data.context_length
    if longest and context > longest and not step:
        log(f"its model was trained on at most {longest} elements, and data.context_length is {context}")
    return task, params, workdir, step, weights


def measuring_mesh(task: ModelTask) -> Mesh:
    """The run's own mesh, or one that splits the parameters over all devices, or one that has them whole on each.

    It is the first that covers the devices, which may be others than the run's, and divides parameters and rows.
    One process leaves devices out where none does.

    Raises:
        ConfigError: the rows of a batch cannot be split over the devices of several processes.
    """
    config, abstract = replace(task.config, accumulation=1), task.model.abstract_params()
    for sizes in (config.mesh, MeshConfig(data=1, fsdp=-1)):
        with suppress(ConfigError, ValueError):
            mesh = make_mesh(sizes)
            check_batch(mesh, config)
            shardings = state_shardings(abstract, mesh, task.axes())
            jax.tree.map(lambda x, s: s.shard_shape(x.shape), abstract, shardings)
            return mesh
    few = jax.devices()[: math.gcd(config.batch_rows, jax.device_count())]
    mesh = make_mesh(MeshConfig(), few if processes.process_count() == 1 else None)
    check_batch(mesh, config)
    return mesh


def shared(task: ModelTask, mesh: Mesh) -> Any:
    """The shapes of the model's parameters, to be loaded split over the mesh."""
    abstract = task.model.abstract_params()
    shardings = state_shardings(abstract, mesh, task.axes())
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)


@contextmanager
def naming_others(checkpoints: Checkpoints) -> Iterator[None]:
    """Raises CheckpointError for a damaged checkpoint, and names those that could be read in its place."""
    try:
        yield
    except DamagedCheckpoint as error:
        others = ", ".join(str(other) for other in checkpoints.steps if other != error.step) or "there is none"
        raise CheckpointError(f"{error}; choose another --step: {others}") from error
