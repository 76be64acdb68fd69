"""A watchdog: it ends a process in which nothing has gone on for too long, and shows where every thread stands."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from transfusion_jax.errors import LostProcess
from transfusion_jax.parallel import processes

STDERR = 2  # its descriptor: whatever became of sys.stderr
LAST_WORDS = 5.0  # seconds for them at most
LOOKS = 20  # in the time that nothing may go on


@dataclass
class Beat:
    """The progress of the main thread, which calls this whenever it makes some; times are monotonic."""

    last_words: Callable[[str], None] | None = None  # is told why the process ends; a few seconds are given to it
    last: float = field(default_factory=time.monotonic)
    doing: str = "starting"
    since: float = field(default_factory=time.monotonic)  # when it began to
    step: int = 0  # the newest that was sent off
    _first: tuple[float, int] | None = None  # when the first step was sent off, and its number

    def __call__(self) -> None:
        """Something has gone on."""
        self.last = time.monotonic()

    def turn(self, doing: str) -> None:
        """Something else is begun."""
        self()
        if doing != self.doing:
            self.doing, self.since = doing, self.last

    def stepped(self, step: int) -> None:
        """A step was dispatched, and the one before it is done."""
        self()
        self.step = step
        self._first = self._first or (self.last, step)

    @property
    def pace(self) -> float | None:
        """Seconds per step since the first one was dispatched, with all work between steps."""
        if self._first is None or self.step == self._first[1]:
            return None
        return (self.last - self._first[0]) / (self.step - self._first[1])


@contextmanager
def watchdog(patience: float, beat: Beat) -> Iterator[None]:
    """Ends the process with code 76 where something has not gone on for too long.

    Args:
        patience: seconds; 0 for no watchdog.
        beat: must be called in that time.
    """
    if not patience:
        yield
        return
    beat()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(patience / LOOKS):
            # Native code that hangs with Python's lock held stops this thread, too: then faulthandler's ends all.
            faulthandler.dump_traceback_later(2 * patience, exit=True, file=STDERR)
            if time.monotonic() - beat.last > patience:
                faulthandler.dump_traceback(STDERR)
                reason = f"a hang: nothing went on for {patience:g} s (loop.hang_after)"
                os.write(STDERR, f"transfusion: {reason}; the stacks above say where it hung\n".encode())
                if beat.last_words:  # beside this thread: storage may be what hangs
                    speaker = threading.Thread(target=beat.last_words, args=(reason,), daemon=True)
                    speaker.start()
                    speaker.join(min(patience, LAST_WORDS))
                processes.leave(LostProcess.exit_code, reason)
        faulthandler.cancel_dump_traceback_later()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
