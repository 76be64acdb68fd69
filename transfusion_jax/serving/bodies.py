"""Reads what clients send, within bounds of size, of shape and of time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.types import Receive

from transfusion_jax.serving.json_meter import JsonMeter
from transfusion_jax.serving.limits import ServerLimits

RETRY = {"Retry-After": "5"}  # seconds
CLOSE = {"Connection": "close"}


class ClientLeft(Exception):
    """The client is gone."""


class Bodies:
    """The bodies of all requests that are not answered yet."""

    def __init__(self, limits: ServerLimits):
        self.limits, self.held = limits, 0

    @contextmanager
    def counted(self) -> Iterator[Callable[[int], None]]:
        """Counts the bytes of one request, which are given back at the end.

        Raises:
            HTTPException: it holds more than one may, or all together do.
        """
        limits, taken = self.limits, 0

        def count(more: int) -> None:
            nonlocal taken
            taken += more
            self.held += more
            if taken > limits.body:
                raise HTTPException(413, f"a request may hold {limits.body} bytes")
            if self.held > limits.bodies:
                raise HTTPException(503, "too many bytes wait", RETRY)

        try:
            yield count
        finally:
            self.held -= taken

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive, count: Callable[[int], None]) -> bytes:
        """All that a client sends.

        Raises:
            HTTPException: it is no JSON, too large, too intricate or too slow.
            ClientLeft: the client is gone.
        """
        limits = self.limits
        _check_headers(headers, limits)
        chunks, meter, more = [], JsonMeter(limits), True
        try:
            async with asyncio.timeout(limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    count(len(chunk))
                    meter.take(chunk)
                    chunks.append(chunk)
        except TimeoutError as error:
            detail = f"a request's body must come within {limits.body_seconds:g} seconds"
            raise HTTPException(408, detail, CLOSE) from error
        return b"".join(chunks)


def _check_headers(headers: Mapping[bytes, bytes], limits: ServerLimits) -> None:
    """Refuses what can be refused before it is sent; what is true of the rest is seen as it comes."""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 15 or int(length) > limits.body:
        raise HTTPException(413, f"a request may hold {limits.body} bytes")
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        raise HTTPException(415, "a request's body must be JSON: Content-Type: application/json")
