"""A watchdog: it ends a process in which nothing has gone on for too long, and shows where every thread stands."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transfusion_jax.errors import LostProcess
from transfusion_jax.parallel import processes

STDERR = 2  # its descriptor: whatever became of sys.stderr
LOOKS = 20  # in the time that nothing may go on


@contextmanager
def watchdog(patience: float) -> Iterator[Callable[[], None]]:
    """A function to call whenever something has gone on; the process ends with code 76 where that fails to come.

    Args:
        patience: seconds; 0 for no watchdog.
    """
    if not patience:
        yield lambda: None
        return
    ended = threading.Event()
    last = [time.monotonic()]

    def beat() -> None:
        last[0] = time.monotonic()

    def watch() -> None:
        while not ended.wait(patience / LOOKS):
            # Native code that hangs with Python's lock held stops this thread, too: then faulthandler's ends all.
            faulthandler.dump_traceback_later(2 * patience, exit=True, file=STDERR)
            if time.monotonic() - last[0] > patience:
                faulthandler.dump_traceback(STDERR)
                reason = f"nothing went on for {patience:g} s (loop.hang_after); the stacks above say where it hung"
                os.write(STDERR, f"transfusion: {reason}\n".encode())
                processes.leave(LostProcess.exit_code, reason)
        faulthandler.cancel_dump_traceback_later()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield beat
    finally:
        ended.set()
        thread.join()
