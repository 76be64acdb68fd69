"""`transfusion serve`: a page and an API on a trained model, on this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import quote

from transfusion_jax.commands.common.load_model import read_model
from transfusion_jax.config import ConfigError, SamplingConfig, require
from transfusion_jax.generation.guidance import untrained_branch

NEEDED = "transfusion serve needs FastAPI: pip install 'transfusion-jax[serve]'"
TOKEN = "TRANSFUSION_TOKEN"


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Serves until it is told to end; returns the exit code."""
    del overrides
    try:
        from transfusion_jax.serving.access import access_of
        from transfusion_jax.serving.address import resolve
        from transfusion_jax.serving.server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"{NEEDED} ({error.name} is missing)") from error
    address = resolve(arguments.host, arguments.port)
    token = choose_token(arguments, os.environ, address.loopback)
    with address.listen() as listening:
        port = listening.getsockname()[1]
        access = access_of(address.host, port, arguments.allow_host, token)
        task, params, workdir, step, weights = read_model(arguments, print)
        for line in untrained_branch(task.config, replace(task.config.sampling, guidance=SamplingConfig.guidance)):
            print(line)  # whatever the run's own guidance is, a request may ask for more
        if token is None and not address.loopback:
            print(f"--no-token: whoever reaches {address.shown}:{port} may use this model")
        if address.everywhere:
            print(f"other machines reach port {port} at this machine's addresses, or at names of --allow-host")
        params = task.model.by_layer(params)  # here, so that nothing holds the others
        url = f"http://{address.link}:{port}" + (f"/#token={quote(token, safe='')}" if token else "")
        return serve(task, params, workdir, (step, weights), listening, access, url, arguments.waiting)


def choose_token(arguments: argparse.Namespace, environment: Mapping[str, str], loopback: bool) -> str | None:
    """The token that clients must show, from the option or the environment; None where there is none.

    Raises:
        ConfigError: it is no token, or there is none where other machines may connect.
    """
    given, found = arguments.token, environment.get(TOKEN)
    require(given is None or not arguments.no_token, "--token and --no-token exclude each other")
    if arguments.no_token:
        return None
    where, token = ("--token", given) if given is not None else (TOKEN, found)
    require(
        token is None or re.fullmatch("[!-~]+", token) is not None,
        f"{where} must be printable ASCII without blanks, and not empty",
    )
    require(
        token is not None or loopback,
        f"--host {arguments.host} lets other machines connect: set a token in {TOKEN}, or say --no-token",
    )
    return token
