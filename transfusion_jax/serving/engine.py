"""Decodes what requests ask for, those that ask alike together, in one thread.

Requests wait in a bounded queue. The oldest is taken, with all that wait and can share its batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from transfusion_jax.config import SamplingConfig
from transfusion_jax.data.datasets import Codec
from transfusion_jax.generation.interleaved import (
    Drew,
    Ended,
    Event,
    Request,
    check_requests,
    edit_images,
    rows_at_a_time,
    stream,
)
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.model.transfusion import Params
from transfusion_jax.serving.measures import Measures
from transfusion_jax.tasks.families import ModelTask

CHUNK = 4  # tokens between two looks at what was written


class Full(Exception):
    """As many requests wait as may."""


class Stopped(Exception):
    """No request is taken any more."""


@dataclass(frozen=True)
class Sharing:
    """What requests of one batch have in common."""

    sampling: SamplingConfig
    writing: Writing
    max_images: int
    previews: int


@dataclass(eq=False)
class QueuedRequest:
    """A request that waits or is under way."""

    request: Request
    how: Sharing
    tell: Callable[[Event | None], None]  # None: it broke off. Called from the engine's thread
    cancelled: bool = False  # nobody listens any more
    asked: float = field(default_factory=time.monotonic)


class Engine:
    """The thread, and the queue before it."""

    def __init__(self, task: ModelTask, params: Params, codec: Codec, waiting: int, measures: Measures):
        self.task, self.params, self.codec = task, params, codec
        self.most, self.measures = waiting, measures
        self.together = rows_at_a_time(task.config)
        self._waiting: deque[QueuedRequest] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def start(self) -> None:
        """Begins to decode."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are decoded."""
        return self._thread.is_alive()

    def submit(self, job: QueuedRequest) -> None:
        """Puts a job at the queue's end.

        Raises:
            ConfigError: the model cannot do what is asked.
            Full: too many wait.
            Stopped: the engine ends, or has broken off.
        """
        check_requests(self.task.config, [job.request], job.how.sampling)
        with self._changed:
            if self._stopping or not self.alive:
                raise Stopped
            if len(self._waiting) >= self.most:
                raise Full
            self._waiting.append(job)
            self.measures.waiting.set(len(self._waiting))
            self._changed.notify()

    def stop(self, timeout: float) -> None:
        """Takes no more requests, and ends when those that it has are done."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        under_way: list[QueuedRequest] = []
        try:
            while under_way := self._next():
                self._decode(under_way)
        finally:  # whatever ended it, nobody waits in vain
            with self._changed:
                self._stopping = True
                left = under_way + list(self._waiting)
                self._waiting.clear()
            for job in left:
                job.tell(None)

    def _next(self) -> list[QueuedRequest]:
        """The next batch; empty when it is time to end."""
        with self._changed:
            while True:
                waiting = [job for job in self._waiting if not job.cancelled]
                if waiting or self._stopping:
                    break
                self._waiting.clear()
                self._changed.wait()
            kind = [(job.how, edit_images([job.request])) for job in waiting]
            chosen = [job for job, other in zip(waiting, kind, strict=True) if other == kind[0]][: self.together]
            self._waiting = deque(job for job in waiting if job not in chosen)
            self.measures.waiting.set(len(self._waiting))
            return chosen

    def _decode(self, jobs: list[QueuedRequest]) -> None:
        measures, how = self.measures, jobs[0].how
        begin = time.monotonic()
        for job in jobs:
            measures.waited.observe(begin - job.asked)
        measures.rows.observe(len(jobs))
        with measures.busy.track_inprogress():
            requests = [job.request for job in jobs]
            settings = how.sampling, how.writing, how.max_images, how.previews
            events = stream(self.task, self.params, self.codec, requests, *settings, chunk=CHUNK)
            for event in events:
                measures.images.inc(isinstance(event, Drew))
                measures.ended.inc(isinstance(event, Ended))
                jobs[event.sample].tell(event)
                if all(job.cancelled for job in jobs):
                    events.close()
