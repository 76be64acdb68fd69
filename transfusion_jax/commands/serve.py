"""`transfusion serve`: a page and an API on a trained model, on this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
from dataclasses import replace

from transfusion_jax.commands.common.load_model import read_model
from transfusion_jax.config import ConfigError, SamplingConfig, require
from transfusion_jax.generation.guidance import untrained_branch

NEEDED = "transfusion serve needs FastAPI: pip install 'transfusion-jax[serve]'"


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Serves until it is told to end; returns the exit code."""
    del overrides
    require(0 <= arguments.port < 2**16, f"--port must lie between 0 and 65535, not {arguments.port}")
    require(arguments.waiting >= 1, f"--waiting must be at least 1, not {arguments.waiting}")
    try:
        from transfusion_jax.serving.server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"{NEEDED} ({error.name} is missing)") from error
    task, params, workdir, step, weights = read_model(arguments, print)
    for line in untrained_branch(task.config, replace(task.config.sampling, guidance=SamplingConfig.guidance)):
        print(line)  # whatever the run's own guidance is, a request may ask for more
    params = task.model.by_layer(params)  # here, so that nothing holds the others
    return serve(task, params, workdir, (step, weights), (arguments.host, arguments.port), arguments.waiting)
