"""HTTP/1.1 connections that wait only so long for their clients."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from transfusion_jax.serving.limits import ServerLimits

LATE = b'{"detail":"a request must come without pauses"}'
LATE = b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n" + (
    b"Content-Length: %d\r\n\r\n%b" % (len(LATE), LATE)
)


class TimedConnection(H11Protocol):
    """uvicorn's connection, which ends when a request's head, the rest of a body or the client's reading is late.

    The body of a request that is being answered is timed where it is read.
    """

    def __init__(self, limits: ServerLimits, **how: Any):
        super().__init__(**how)
        self.limits = limits
        self._request: asyncio.TimerHandle | None = None  # runs while no request has begun
        self._reader: asyncio.TimerHandle | None = None  # runs while the client leaves too much unread

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to wait for a request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._await_request()

    def handle_events(self) -> None:
        """Takes in what came, and stops the clock once that is a request."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            _stop(self._request)

    def on_response_complete(self) -> None:
        """Waits for the next request, and for what is left of this one."""
        self._await_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begins to wait for the client to read."""
        super().pause_writing()
        self._reader = self.loop.call_later(self.limits.client_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        _stop(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops all clocks."""
        _stop(self._request)
        _stop(self._reader)
        super().connection_lost(exc)

    def _await_request(self) -> None:
        _stop(self._request)
        self._request = self.loop.call_later(self.limits.head_seconds, self._late)

    def _late(self) -> None:
        begun = self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]
        if begun and not self.transport.is_closing():
            self.transport.write(LATE)
        self.transport.close()
        self._request = self.loop.call_later(
            self.limits.client_seconds, self.transport.abort
        )  # it may not read that


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
