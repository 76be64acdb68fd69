"""SIGINT and SIGTERM: the first one saves and ends the run, whatever it is doing; a second one ends it at once.

Python runs signal handlers in the main thread between two of its instructions, so a handler waits for as long as
XLA compiles or computes. Here the signal's number is written to a pipe, which the C part of the handler does at
once, and a thread of its own reads it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from transfusion_jax.errors import INTERRUPTED, UserError
from transfusion_jax.parallel import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether a signal has asked the run to end, and how the process may be left meanwhile."""

    def __init__(self, log: Callable[[str], None]):
        self.requested = False
        self._say = log
        self._lock = threading.Lock()
        self._may_leave = False
        self._save: Callable[[], None] | None = None

    @contextmanager
    def may_leave(self, save: Callable[[], None] | None = None) -> Iterator[None]:
        """While this lasts, a signal ends the process without waiting for the main thread.

        Args:
            save: called first, in another thread, where something would be lost.
        """
        with self._lock:
            before = self._may_leave, self._save
            self._may_leave, self._save = True, save
        if self.requested:  # since the main thread looked last
            threading.Thread(target=self._leave, daemon=True).start()
        try:
            yield
        finally:
            with self._lock:  # waits for ever where the other thread is saving: it then ends the process
                self._may_leave, self._save = before

    def request(self, number: int) -> None:
        """Takes a signal; called in the watching thread."""
        if self.requested:
            _exit(128 + number)
        self.requested = True
        name = signal.Signals(number).name
        try:
            self._say(f"{name}: saving as soon as the running step ends; a second signal ends this at once")
        finally:
            threading.Thread(target=self._leave, daemon=True).start()  # this thread waits for the second signal

    def _leave(self) -> None:
        with self._lock:
            if not self._may_leave:
                return  # the main thread will see the request
            code = 1
            try:
                if self._save is not None:
                    self._save()
                self._say(f"{'saved' if self._save else 'nothing is lost'}; run the same command to go on")
                code = INTERRUPTED
            except UserError as error:
                self._say(f"transfusion: {error}")
                code = error.exit_code
            finally:  # whatever happened, the main thread must not go on beside a half-done save
                if code == 1:
                    traceback.print_exc()
                _exit(code)


@contextmanager
def watch_signals(log: Callable[[str], None]) -> Iterator[Interruption]:
    """Takes SIGINT and SIGTERM for as long as the context lasts; the main thread's alone."""
    interruption = Interruption(log)
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch() -> None:
        while number := os.read(read, 1)[0]:
            if number in SIGNALS:
                interruption.request(number)

    def ignore(number: int, frame: FrameType | None) -> None:
        """The pipe has the signal already."""

    before = {number: signal.signal(number, ignore) for number in SIGNALS}
    descriptor = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield interruption
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(write, b"\0")
        watcher.join()
        os.close(read)
        os.close(write)


def _exit(code: int) -> NoReturn:
    """Ends the process now, with its loader processes: no cleaning up that could hang."""
    for child in multiprocessing.active_children():
        child.kill()
    processes.leave(code, "a signal")
