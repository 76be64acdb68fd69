"""Tells a thread when JAX begins to compile in it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

from jax import monitoring

_EVENTS = "/jax/core/compile/"
_LAST = "/jax/core/compile/backend_compile_duration"  # compiled; those before it tell that it begins
_told = threading.local()


def tell_compiling(tell: Callable[[], None]) -> None:
    """From now on calls `tell` whenever a program is traced or lowered in this thread, before it is compiled."""
    _told.tell = tell
    _listen()


@functools.cache
def _listen() -> None:
    monitoring.register_event_duration_secs_listener(_heard)


def _heard(event: str, duration_secs: float, **_: str | int) -> None:
    del duration_secs
    if event.startswith(_EVENTS) and event != _LAST and (tell := getattr(_told, "tell", None)):
        tell()
