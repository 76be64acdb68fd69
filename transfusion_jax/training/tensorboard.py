"""TensorBoard's event files, written at once by the calling thread.

tensorboardX's own `SummaryWriter` writes in another thread, which ends at the first error; after that the run would
wait for it for ever.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from transfusion_jax.bucket import BucketPath
from transfusion_jax.files import check_own, write_whole
from transfusion_jax.storage import Place
from transfusion_jax.training.parts import EVERY

LARGE = 1 << 22  # bytes of an event file in a bucket that is full: it is put whole each time


class Events:
    """Event files; what earlier ones hold from `first_step` on is no longer shown.

    A local folder gets one. In a bucket a file is put whole, now and then, and another follows once it is large.
    """

    def __init__(self, folder: Place, first_step: int):
        self._bucket, self._scratch = None, None
        if isinstance(folder, BucketPath):
            self._bucket, self._scratch = folder, tempfile.TemporaryDirectory()
            folder = Path(self._scratch.name)
        self._place, self._folder = self._bucket or folder, folder
        self._put_at = 0.0
        self._begin()
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step, by name."""
        values_of = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=values_of))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An image `[H, W, 3]` uint8."""
        self._write(step, summary=summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Returns once everything can be read."""
        check_own(self._place)
        self._file.flush()
        if self._bucket:
            (path,) = self._folder.iterdir()
            write_whole(self._bucket / path.name, path.read_bytes())
            self._put_at = time.monotonic()
            if path.stat().st_size >= LARGE:
                self._file.close()
                path.unlink()
                self._begin()

    def close(self) -> None:
        """Ends the file."""
        self.flush()
        self._file.close()
        if self._scratch:
            self._scratch.cleanup()

    def _begin(self) -> None:
        check_own(self._place)
        self._folder.mkdir(parents=True, exist_ok=True)
        suffix = f".{time.time_ns()}.{os.getpid()}"  # the name alone has whole seconds
        self._file = EventsWriter(str(self._folder / "events"), suffix)

    def _write(self, step: int, **content: object) -> None:
        check_own(self._place)
        self._file.write_event(Event(wall_time=time.time(), step=step, **content))
        if not self._bucket or time.monotonic() - self._put_at >= EVERY:
            self.flush()
