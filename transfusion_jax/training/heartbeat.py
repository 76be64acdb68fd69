"""A heartbeat: a small file in which a live run says what it is doing, since when, and how long that may take.

A thread writes it, so that a run is heard of while it compiles, evaluates or waits for storage. That the thread
writes shows that the process lives, not that it gets on: the file also says when the main thread last did.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from transfusion_jax.bucket import BucketPath
from transfusion_jax.errors import StorageError
from transfusion_jax.storage import Place
from transfusion_jax.training.files import write_whole
from transfusion_jax.training.lease import this_process
from transfusion_jax.training.watchdog import Beat

EVERY, EVERY_IN_BUCKET = 5.0, 60.0  # seconds between two writings
LEAVING = 10.0  # seconds that the end of a run waits for a writing under way


@dataclass(frozen=True)
class Heartbeat:
    """What a run says of itself; times are seconds since the epoch."""

    process: dict[str, Any]  # see `lease.this_process`
    every: float  # seconds between two writings
    patience: float  # seconds without progress after which the run ends itself; 0: it never does
    written: float
    doing: str
    since: float  # when it began to
    progress: float  # when the main thread last got on
    step: int
    pace: float | None  # seconds per step so far, with what is done beside them; None where that is not known yet


def read_heartbeat(path: Place) -> Heartbeat | None:
    """What was written last; None where no run lives, or what is there is no heartbeat."""
    try:
        return Heartbeat(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


@contextmanager
def heartbeat(path: Place, beat: Beat, patience: float) -> Iterator[None]:
    """Writes the file while the context lasts, and takes it away at its end. A writing that fails is left out.

    Args:
        path: of the file.
        beat: what the main thread tells.
        patience: see `Heartbeat`.
    """
    process, every = this_process(), EVERY_IN_BUCKET if isinstance(path, BucketPath) else EVERY
    ended = threading.Event()

    def write() -> None:
        now, monotonic = time.time(), time.monotonic()
        said = Heartbeat(
            process=process,
            every=every,
            patience=patience,
            written=now,
            doing=beat.doing,
            since=now - (monotonic - beat.since),
            progress=now - (monotonic - beat.last),
            step=beat.step,
            pace=beat.pace,
        )
        with suppress(StorageError, OSError):
            write_whole(path, json.dumps(dataclasses.asdict(said)) + "\n")

    def go_on() -> None:
        while not ended.wait(every):
            write()

    write()
    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LEAVING)
        with suppress(StorageError, OSError):
            path.unlink(missing_ok=True)
