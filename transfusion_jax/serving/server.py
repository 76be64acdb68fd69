"""The process that serves: one engine, one web server."""

from __future__ import annotations

import signal
import socket

import uvicorn

from transfusion_jax.config import ConfigError
from transfusion_jax.model.transfusion import Params
from transfusion_jax.serving.app import DRAIN, Served, make_app
from transfusion_jax.serving.engine import Engine
from transfusion_jax.serving.measures import Measures
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.training.facts import codec_of
from transfusion_jax.training.run_dir import Workdir


def serve(
    task: ModelTask,
    params: Params,
    workdir: Workdir,
    read: tuple[int, str],
    address: tuple[str, int],
    waiting: int,
) -> int:
    """Serves until SIGTERM or Ctrl-C, and then to the end of what is under way; returns the exit code.

    Raises:
        ConfigError: the address cannot be listened at.
    """
    try:
        listening = socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"cannot listen at {address[0]}:{address[1]}: {error.strerror}") from error
    engine = Engine(task, params, codec_of(workdir), waiting, Measures())
    app = make_app(engine, Served(workdir.path.name, *read))
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=int(DRAIN), server_header=False)
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(f"serving at http://{host}:{listening.getsockname()[1]}", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has ended
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])
    return 0
