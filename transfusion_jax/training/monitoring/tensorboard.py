"""TensorBoard's event files, written at once by the calling thread, which hears of an error at once."""

from __future__ import annotations

import io
import os
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from transfusion_jax.storage.atomic import UNFINISHED, check_own, write_whole
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.jsonl_segments import EVERY
from transfusion_jax.storage.paths import Place
from transfusion_jax.training.monitoring import event_file

LARGE = 1 << 22  # bytes of an event file in a bucket that is full: it is put whole each time
NAME = "events.out.tfevents."  # with which the names of event files begin


class Events:
    """Event files, in which each scalar and image of a step stands once.

    What earlier files hold from `first_step` on, which will be made again, is cut off, and a TensorBoard that shows
    it is told so. Of the step before, a resumed run may record the evaluation alone: what is there is left out.

    A local folder gets one file. In a bucket a file is put whole, now and then; another follows once it is large.
    """

    def __init__(self, folder: Place, first_step: int):
        self._newest, self._there = first_step - 1, keep_before(folder, first_step)
        self._bucket, self._scratch = None, None
        if isinstance(folder, BucketPath):
            self._bucket, self._scratch = folder, tempfile.TemporaryDirectory()
            folder = Path(self._scratch.name)
        self._place, self._folder = self._bucket or folder, folder
        self._put_at = 0.0
        self._begin()
        self._write(first_step, event_file.session_start())

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step, by name; steps come in order, and a name that the step has already is left out."""
        new = self._new(step, *values)
        if new:
            self._write(step, event_file.scalars({name: values[name] for name in new}))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An image `[H, W, 3]` uint8; see `scalars`."""
        if self._new(step, name):
            height, width, _ = image.shape
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            self._write(step, event_file.image(name, height, width, png.getvalue()))

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

    def _new(self, step: int, *names: str) -> list[str]:
        """The names that are new to the step; they are remembered."""
        if step != self._newest:
            self._newest, self._there = step, set()
        new = [name for name in names if name not in self._there]
        self._there.update(new)
        return new

    def _begin(self) -> None:
        check_own(self._place)
        self._folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()
        name = f"{NAME}{now // 10**9:010d}.{socket.gethostname()}.{now}.{os.getpid()}"
        self._file = (self._folder / name).open("ab")
        self._append(0, event_file.head())

    def _write(self, step: int, content: bytes) -> None:
        check_own(self._place)
        self._append(step, content)
        if not self._bucket or time.monotonic() - self._put_at >= EVERY:
            self.flush()

    def _append(self, step: int, content: bytes) -> None:
        self._file.write(event_file.framed(event_file.event(time.time(), step, content)))


def keep_before(folder: Place, step: int) -> set[str]:
    """Cuts the event files of a folder back to the steps before one; returns the names that the last of these has.

    Files are in the order of their steps, so that the first ones are not read.
    """
    names: set[str] = set()
    if not folder.is_dir():
        return names
    files: list[Place] = [path for path in folder.iterdir() if path.name.startswith(NAME)]
    for path in sorted(files, key=lambda path: path.name, reverse=True):
        data = path.read_bytes()
        kept = [(record, about) for record, about in event_file.read_events(data) if about.step < step]
        if all(about.is_head for _, about in kept) or path.name.endswith(UNFINISHED):
            path.unlink()
        elif (cut := b"".join(record for record, _ in kept)) != data:
            write_whole(path, cut)
        names |= {tag for _, about in kept if about.step == step - 1 for tag in about.tags}
        if any(about.step < step - 1 and about.tags for _, about in kept):
            break
    return names
