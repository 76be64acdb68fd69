"""What the engine's thread tells a request, on its way to the client."""

from __future__ import annotations

import asyncio
from collections import deque

from transfusion_jax.generation.interleaved import Draws, Wrote
from transfusion_jax.serving.engine import Compiling, Told


class Inbox:
    """Events in their order; those that a slow client has not read yet never outgrow its answer.

    Texts join, and of previews and of `Compiling` only the last one stays.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[Told] = deque()
        self._filled = asyncio.Event()

    def tell(self, event: Told) -> None:
        """Puts an event in; called from any thread."""
        self._loop.call_soon_threadsafe(self._put, event)

    async def get(self) -> Told:
        """Takes the oldest event out."""
        await self._filled.wait()
        event = self._events.popleft()
        if not self._events:
            self._filled.clear()
        return event

    def _put(self, event: Told) -> None:
        last = self._events[-1] if self._events else None
        match last, event:
            case Wrote(sample, before), Wrote(_, after):
                self._events[-1] = Wrote(sample, before + after)
            case (Draws(), Draws()) | (Compiling(), Compiling()):
                self._events[-1] = event
            case _:
                self._events.append(event)
        self._filled.set()

    def __len__(self) -> int:
        return len(self._events)
