"""TensorBoard's event files, written at once by the calling thread.

tensorboardX's own `SummaryWriter` writes in another thread, which ends at the first error; after that the run would
wait for it for ever.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class Events:
    """One event file; what earlier files hold from `first_step` on is no longer shown."""

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        suffix = f".{time.time_ns()}.{os.getpid()}"  # the name alone has whole seconds
        self._file = EventsWriter(str(folder / "events"), suffix)
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step, by name."""
        values_of = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=values_of))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An image `[H, W, 3]` uint8."""
        self._write(step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def _write(self, step: int, **content: object) -> None:
        self._file.write_event(Event(wall_time=time.time(), step=step, **content))
        self._file.flush()
