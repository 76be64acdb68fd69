"""HTTP/1.1 connections that wait only so long for their clients, and take turns with each other."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from transfusion_jax.serving.limits import ServerLimits

TURN = 64  # pieces of bodies that a connection parses before others have their turn


class PieceCounter(h11.Connection):
    """h11's parser, which stops when a turn is over or a body has come in too many chunks."""

    def __init__(self, most: int, head: int):
        super().__init__(h11.SERVER, head)
        self.most, self.chunks, self.turn = most, 0, TURN

    @property
    def too_many(self) -> bool:
        """Whether the chunks of a body are more than they may be."""
        return self.chunks > self.most

    def next_event(self) -> Any:
        """The next event; NEED_DATA, too, when it stops."""
        if self.turn == 0 or self.too_many:
            return h11.NEED_DATA
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.chunks = 0
        elif isinstance(event, h11.Data):
            self.turn -= 1
            self.chunks += event.chunk_start
        return event


class TurnFlow(FlowControl):
    """uvicorn's flow control, which reads nothing while the connection waits for its turn."""

    waiting = False

    def wait(self) -> None:
        """Stops reading, whoever asks for more."""
        self.waiting = True
        self._transport.pause_reading()

    def go_on(self) -> None:
        """Reads again, unless somebody asked for a pause."""
        self.waiting = False
        if not self.read_paused:
            self._transport.resume_reading()

    def resume_reading(self) -> None:
        """Reads again, now or when it is the connection's turn."""
        if self.waiting:
            self.read_paused = False
        else:
            super().resume_reading()


class TimedConnection(H11Protocol):
    """uvicorn's connection, which ends when a request's head, the rest of a body or the client's reading is late.

    The body of a request that is being answered is timed where it is read. Chunks cost time however small they are:
    they are parsed in turn with what other connections sent, and too many of them end the connection.
    """

    conn: PieceCounter
    flow: TurnFlow

    def __init__(self, limits: ServerLimits, **how: Any):
        super().__init__(**how)
        self.limits = limits
        self.conn = PieceCounter(limits.chunks, limits.head)
        self._request: asyncio.TimerHandle | None = None  # runs while no request has begun
        self._reader: asyncio.TimerHandle | None = None  # runs while the client leaves too much unread

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to wait for a request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.flow = TurnFlow(self.transport)
        self._await_request()

    def handle_events(self) -> None:
        """Takes in what came, as far as its turn goes, and stops the clock once that is a request."""
        if self.flow.waiting:
            return
        self.conn.turn = TURN
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            _stop(self._request)
        if self.conn.too_many:
            unanswered = self.conn.our_state is h11.SEND_RESPONSE
            self._end(413, f"a request's body may come in {self.limits.chunks} chunks" if unanswered else None)
        elif self.conn.turn == 0 and not self.transport.is_closing():
            self.flow.wait()
            self.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        if not self.transport.is_closing():
            self.flow.go_on()
            self.handle_events()

    def on_response_complete(self) -> None:
        """Starts the timer for the next request; the unread rest of this request's body counts against it, too."""
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
        self._end(408, "a request must come without pauses" if begun else None)
        self._request = self.loop.call_later(
            self.limits.client_seconds, self.transport.abort
        )  # it may not read that

    def _end(self, status: int, detail: str | None) -> None:
        """Hangs up, and says why where there is a detail."""
        if detail is not None and not self.transport.is_closing():
            body = json.dumps({"detail": detail})
            self.transport.write(
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
                f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
        self.transport.close()


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
