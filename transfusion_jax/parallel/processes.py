"""The processes of a run: how they find each other, agree with each other, and learn that one of them has failed.

Everything here goes through the key-value store of JAX's coordination service, not through devices: it works before
there is a mesh, and it has deadlines. All processes must call the same functions in the same order.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import jax
from jax._src.distributed import global_state  # the store has no public name (jax 0.10, 0.11)

from transfusion_jax.config import ConfigError
from transfusion_jax.errors import LostProcess, UserError, whole_number

T = TypeVar("T")

PLAIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
LOOPBACK = ("127.0.0.1", "[::1]", "localhost")
TPU_FILES = ("/dev/accel0", "/dev/vfio/0")
PATIENCE = 600  # seconds that processes wait for each other: one may be planning rows, or loading, for that long
FOUND_IN = 300  # seconds for all processes to start
WATCH_EVERY = 1.0  # seconds
GRACE = 1.0  # seconds for this process to find by itself what made another one end
HEARD = WATCH_EVERY + GRACE + 1.0  # seconds in which all others have heard of a failure, and ended
FAILED = "transfusion/failed"
LOSSES = ("UNAVAILABLE", "Gloo", "Connection reset", "Connection closed", "heartbeat", "coordination service")

_numbers = itertools.count()
_leaving = threading.Event()


def connect() -> None:
    """Joins this process to the others of its run, where there are others; before any use of JAX's devices.

    In this order: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` name them; this is a Slurm
    step of several tasks; this is a host of a TPU slice, which JAX asks its metadata about.

    Raises:
        ConfigError: the variables are incomplete or wrong.
        LostProcess: the others do not answer.
    """
    if jax.distributed.is_initialized():
        return
    arguments = how_to_connect(os.environ)
    if arguments is None:
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    try:
        jax.distributed.initialize(initialization_timeout=FOUND_IN, **arguments)
    except (RuntimeError, ValueError) as error:
        raise LostProcess(f"the processes of this run do not find each other: {_line(error)}") from error
    if process_count() > 1:
        sys.excepthook = _end_on_exception
        ended = threading.Event()
        watcher = threading.Thread(target=_watch_for_failure, args=(ended,), daemon=True)
        watcher.start()
        atexit.register(watcher.join)  # after the next, and before JAX's own
        atexit.register(ended.set)


def how_to_connect(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None where this process is alone.

    Raises:
        ConfigError: the variables are incomplete or wrong.
    """
    given = [environment.get(name, "") for name in PLAIN]
    if any(given):
        address, processes, process = given
        count, number = whole_number(processes), whole_number(process)
        if count is None or number is None or number >= count or ":" not in address:
            names = ", ".join(f"{name}={value}" for name, value in zip(PLAIN, given, strict=True))
            raise ConfigError(
                f"many processes need host:port, their number, and a number below it each, not {names}"
            )
        here = address.rpartition(":")[0] in LOOPBACK  # else JAX would listen on every network of this machine
        bound = dict(coordinator_bind_address=address) if here else {}
        return dict(coordinator_address=address, num_processes=count, process_id=number, **bound)
    if (whole_number(environment.get("SLURM_STEP_NUM_TASKS", "1")) or 1) > 1:
        one_each = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
        # JAX gives every task of Slurm one GPU; a task that has its node alone takes all of them.
        return dict(cluster_detection_method="slurm") | (dict(local_device_ids=[]) if one_each else {})
    on_tpu = any(os.path.exists(name) for name in TPU_FILES) and importlib.util.find_spec("libtpu") is not None
    told_otherwise = not environment.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    alone = environment.get("TPU_WORKER_HOSTNAMES", ",").count(",") == 0
    return None if not on_tpu or told_otherwise or alone else {}


def process_count() -> int:
    """How many processes there are; needs no device."""
    return global_state.num_processes or 1


def index() -> int:
    """This process's number; needs no device."""
    return global_state.process_id or 0


def first() -> bool:
    """Whether this is the process that writes for all."""
    return index() == 0


def each(function: Callable[[], T]) -> list[T]:
    """What the function returns on every process, in their order, everywhere.

    Between processes it travels as JSON, which it must be made of: objects, lists, texts, numbers.

    Raises:
        UserError: what it raised on any process is raised on all.
        LostProcess: a process does not answer.
    """
    if process_count() == 1:
        return [function()]
    try:
        outcome = json.dumps({"value": function()})
    except UserError as error:
        outcome = json.dumps({"error": _error_to_json(error)}, default=str)
    outcomes = [json.loads(text) for text in _gather(outcome)]
    for number, other in enumerate(outcomes):  # the first error of all, everywhere
        if "error" in other:
            raised = _error_of_json(other["error"])
            raised.args = (f"process {number}: {raised}",) if number else raised.args
            raise raised
    return [other["value"] for other in outcomes]


def _error_to_json(error: UserError) -> dict[str, Any]:
    """The error's classes, the nearest first, and what the first one is constructed from."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, UserError)]
    return {"kinds": kinds, "arguments": list(error.__reduce__()[1]), "message": str(error)}


def _error_of_json(values: dict[str, Any]) -> UserError:
    """The error, as the nearest of its classes that this process knows."""
    known = {kind.__name__: kind for kind in _kinds_of(UserError)}
    kind = next(known[name] for name in values["kinds"] if name in known)
    exact = kind.__name__ == values["kinds"][0]
    return kind(*values["arguments"]) if exact else kind(values["message"])


def _kinds_of(kind: type[UserError]) -> Iterator[type[UserError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds_of(child)


def on_first(function: Callable[[], T]) -> T:
    """What the function returns on the first process, which alone calls it, once all have come here; they wait.

    Raises:
        UserError: what it raised there is raised on all.
    """
    each(lambda: None)
    return each(lambda: function() if first() else None)[0]  # type: ignore[return-value]


def leave(code: int, reason: str) -> NoReturn:
    """Ends this process now, and tells the others why, so that none of them waits for it."""
    _leaving.set()
    if global_state.client is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one failed before, or the store is gone
            global_state.client.key_value_set(FAILED, f"{index()} {reason}")
    _end(code)


def _end(code: int) -> NoReturn:
    if first() and process_count() > 1:
        time.sleep(HEARD)  # the store ends with the first process, and JAX aborts those that lose it
    os._exit(code)


def _gather(text: str) -> list[str]:
    client, key = global_state.client, f"transfusion/{next(_numbers)}"
    assert client is not None
    end = time.monotonic() + PATIENCE

    def get(name: str) -> str:
        left = max(int(1000 * (end - time.monotonic())), 1)
        return str(client.blocking_key_value_get(name, left))

    try:
        client.key_value_set(f"{key}/{index()}", text)
        if first():
            joined = "\n".join(get(f"{key}/{number}") for number in range(process_count()))
            client.key_value_set(f"{key}/all", joined)
        return get(f"{key}/all").split("\n")
    except jax.errors.JaxRuntimeError as error:
        raise LostProcess(f"a process has not answered for {PATIENCE} s: {_line(error)}") from error


def _watch_for_failure(ended: threading.Event) -> None:
    """Ends this process as soon as another has said that it failed."""
    client = global_state.client
    assert client is not None
    while not ended.wait(WATCH_EVERY):
        try:
            number, _, reason = str(client.key_value_try_get(FAILED)).partition(" ")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the store is gone: JAX ends this process, too
        if not _leaving.wait(GRACE) and int(number) != index():
            print(f"transfusion: process {number} has ended: {reason}", file=sys.stderr, flush=True)
            _end(LostProcess.exit_code)
        return


def _end_on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own way out would wait for the others for minutes."""
    lost = isinstance(error, RuntimeError | ValueError) and any(word in str(error) for word in LOSSES)
    if lost:
        time.sleep(5)  # a process that could say why it ended has said so by then, and this one has ended, too
        message = f"another process is gone; run the same command again ({_line(error)})"
        print(f"transfusion: {message}", file=sys.stderr)
        leave(LostProcess.exit_code, message)
    traceback.print_exception(kind, error, trace)
    leave(1, _line(error))


def _line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) < 250 else f"{line[:250]} …"
