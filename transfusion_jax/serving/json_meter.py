"""Bounds the work that a JSON text makes, before anything parses it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException

from transfusion_jax.serving.limits import ServerLimits

_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # as much of a string's inside as is whole
_BLANKS = b" \t\r\n"


@dataclass
class JsonMeter:
    """Counts what a JSON text holds, chunk by chunk; it need not be valid.

    A parser's work grows with the characters outside strings (keys and values have brackets, commas and quotes
    there), with the depth, and with the escapes inside strings. Everything else is copied at memory's speed.
    """

    limits: ServerLimits
    _marks: int = 0
    _depth: int = 0
    _escapes: int = 0
    _in_string: bool = False
    _rest: bytes = field(default=b"")  # a backslash whose partner comes with the next chunk

    def take(self, chunk: bytes) -> None:
        """Counts one more chunk.

        Raises:
            HTTPException: a bound is passed.
        """
        self._escapes += chunk.count(b"\\")
        if self._escapes > self.limits.escapes:
            raise HTTPException(413, f"a request may hold {self.limits.escapes} backslashes")
        chunk, self._rest, at = self._rest + chunk, b"", 0
        while at < len(chunk):
            if self._in_string:
                at = self._through_string(chunk, at)
            else:
                at = self._through_marks(chunk, at)

    def _through_string(self, chunk: bytes, at: int) -> int:
        inside = _STRING.match(chunk, at)
        assert inside is not None  # it matches nothing at all, too
        end = inside.end()
        if chunk[end : end + 1] == b"\\":
            self._rest = b"\\"
        self._in_string = end == len(chunk) or bool(self._rest)
        return end + 1

    def _through_marks(self, chunk: bytes, at: int) -> int:
        quote = chunk.find(b'"', at)
        end = len(chunk) if quote < 0 else quote
        marks = chunk[at:end].translate(None, _BLANKS)
        self._marks += len(marks) + 2 * (quote >= 0)  # and its partner
        if self._marks > self.limits.marks:
            raise HTTPException(
                413, f"a request's JSON may hold {self.limits.marks} characters outside its strings"
            )
        for mark in marks:
            self._depth += (mark in b"[{") - (mark in b"]}")
            if self._depth > self.limits.depth:
                raise HTTPException(413, f"a request's JSON may be nested {self.limits.depth} deep")
        self._in_string = quote >= 0
        return end + 1
