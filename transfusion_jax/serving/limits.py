"""What clients may take of a server: every number in one table, which docs/serving.md repeats."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class ServerLimits:
    """The bounds of one request, and of all together."""

    body: int = 48 * MIB  # bytes of a request's body, counted as they arrive
    bodies: int = 256 * MIB  # bytes of the bodies of all requests that are not answered yet
    chunks: int = 2**13  # that a body may come in, where it is sent chunked
    marks: int = 4096  # characters of a body's JSON outside its strings, blanks aside
    depth: int = 8  # of nested arrays and objects
    escapes: int = 2**18  # backslashes in a body
    pixels: int = 2**27  # of all images of a request together; one image may have half of them
    readers: int = 2  # threads that parse bodies and decode images
    faults: int = 8  # that one answer names
    words: int = 200  # characters that it says of each
    name: int = 40  # characters of each name of a field in it
    head: int = 16 * 1024  # bytes of a request's line and headers
    head_seconds: float = 10  # for a request's line and headers to arrive
    body_seconds: float = 60  # for a body to arrive
    client_seconds: float = 30  # that an answer waits for a client that reads nothing
    connections: int = 512  # beside those of requests that wait
