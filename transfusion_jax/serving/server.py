"""The process that serves: one engine, one web server."""

from __future__ import annotations

import functools
import signal
import socket

import uvicorn
from PIL import Image
from starlette.types import ASGIApp

from transfusion_jax.model.transfusion import Params
from transfusion_jax.serving.access import Access
from transfusion_jax.serving.address import BACKLOG
from transfusion_jax.serving.app import DRAIN, Served, make_app
from transfusion_jax.serving.connection import TimedConnection
from transfusion_jax.serving.engine import Engine
from transfusion_jax.serving.limits import ServerLimits
from transfusion_jax.serving.measures import Measures
from transfusion_jax.serving.reading import usual_requests
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.training.facts import codec_of, trained_shapes
from transfusion_jax.training.run_dir import Workdir

BLOCK = 1 << 26  # bytes of memory that Pillow takes at a time: threads keep for themselves what is below 32 MiB


def serve(
    task: ModelTask,
    params: Params,
    workdir: Workdir,
    read: tuple[int, str],
    listening: socket.socket,
    access: Access,
    url: str,
    waiting: int,
) -> int:
    """Serves until SIGTERM or Ctrl-C, and then to the end of what is under way; returns the exit code.

    Args:
        task: the model's.
        params: its weights.
        workdir: the run's.
        read: its step, and which weights they are.
        listening: a socket that listens at the address.
        access: who may ask.
        url: of the page, which is printed.
        waiting: requests that may wait.
    """
    Image.core.set_block_size(BLOCK)
    codec, limits = codec_of(workdir), ServerLimits()
    engine = Engine(task, params, codec, waiting, Measures(), usual_requests(task, codec))
    app = make_app(engine, served_of(workdir, read), access, limits)
    print(f"serving at {url}", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has ended
        signal.signal(number, lambda *_: None)
    web_server(app, limits, waiting).run(sockets=[listening])
    return 0


def served_of(workdir: Workdir, read: tuple[int, str]) -> Served:
    """What the page says of a run's model, with its step and which weights they are."""
    return Served(workdir.path.name, *read, trained_shapes(workdir.manifest()))


def web_server(app: ASGIApp, limits: ServerLimits, waiting: int) -> uvicorn.Server:
    """uvicorn, with bounds on what a connection may take."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=functools.partial(TimedConnection, limits),  # type: ignore[arg-type]
            ws="none",
            log_level="error",  # a warning for each damaged request would let strangers fill the log
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            limit_concurrency=waiting + limits.connections,
            h11_max_incomplete_event_size=limits.head,
            timeout_graceful_shutdown=int(DRAIN),
        )
    )
