"""Child processes that end when their parent has ended, killed or not."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def end_with_parent() -> None:
    """Ends this process, a child of `multiprocessing`, once its parent has ended; to be called at its start."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    _end_after(parent.join)


@contextmanager
def lifeline() -> Iterator[int]:
    """A descriptor to pass to a child process, for its `end_with`."""
    read, write = os.pipe()  # the child is not given the end to write to, so that this process alone has it
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


def end_with(descriptor: int) -> None:
    """Ends this process once the one that made the `lifeline` has ended."""
    _end_after(lambda: os.read(descriptor, 1))


def _end_after(wait: Callable[[], object]) -> None:
    def follow() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
