"""A heartbeat: a small file in which a live run says what it is doing, since when, and how long that may take.

A thread writes it, also while the run compiles, evaluates or waits for storage. A write shows that the process is
alive, not that it makes progress: the file also says when the main thread last did.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from transfusion_jax.errors import StorageError
from transfusion_jax.storage.atomic import DamagedFile, check_own, read_json, write_json
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.lock import this_process
from transfusion_jax.storage.paths import Place
from transfusion_jax.training.monitoring.watchdog import Beat

EVERY, EVERY_IN_BUCKET = 5.0, 60.0  # seconds between two writes
LEAVING = 10.0  # seconds that the end of a run waits for a write in progress


@dataclass(frozen=True)
class Heartbeat:
    """The state of a live run; times are seconds since 1970."""

    process: dict[str, Any]  # see `lease.this_process`
    every: float  # seconds between two writes
    patience: float  # seconds without progress after which the run ends itself; 0: it never does
    written: float
    doing: str
    since: float  # when it began to
    progress: float  # when the main thread last made progress
    step: int
    pace: float | None  # seconds per step so far, with all work between steps; None until known


FORM = {
    "process": {"host": str, "process": int, "machine": (None, str), "began": (None, str, float)},
    **dict.fromkeys(("every", "patience", "written", "since", "progress"), float),
    **{"doing": str, "step": int, "pace": (None, float)},
}


def read_heartbeat(path: Place) -> Heartbeat | None:
    """The newest heartbeat; None where no run is alive, or the file is no heartbeat."""
    try:
        return Heartbeat(**read_json(path, "", FORM))
    except (FileNotFoundError, IsADirectoryError, DamagedFile, TypeError):
        return None


@contextmanager
def heartbeat(path: Place, beat: Beat, patience: float) -> Iterator[None]:
    """Writes the file while the context lasts, and deletes it at its end. Failed writes are ignored.

    Args:
        path: the file.
        beat: the progress of the main thread.
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
            write_json(path, dataclasses.asdict(said))

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
            check_own(path)  # or it would be that of a run which stands in its place
            path.unlink(missing_ok=True)
