"""Decodes what requests ask for, those that ask alike together, in one thread.

Requests wait in a bounded queue. The oldest is taken, with all that wait and can share its batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
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
from transfusion_jax.serving.compiling import tell_compiling
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


@dataclass(frozen=True)
class Compiling:
    """Whether programs are compiled now, which all that wait and are under way wait for."""

    now: bool


@dataclass(frozen=True)
class Warned:
    """What a client should know of a request that is served."""

    text: str


Told = Event | Compiling | Warned | None  # None: decoding broke off


@dataclass(frozen=True)
class QueuedRequest:
    """A request to be decoded."""

    request: Request
    how: Sharing
    tell: Callable[[Told], None]  # called from the engine's thread


@dataclass(eq=False)
class QueuePlace:
    """A place in the queue: taken before a request is read, given up when it is decoded or its client leaves."""

    job: QueuedRequest | None = None  # until it is read
    left: bool = False  # nobody listens any more
    taken: float = field(default_factory=time.monotonic)


class Engine:
    """The thread, and the queue before it."""

    def __init__(
        self,
        task: ModelTask,
        params: Params,
        codec: Codec,
        waiting: int,
        measures: Measures,
        usual: Sequence[tuple[Request, Sharing]] = (),  # what programs are compiled for before anything is decoded
    ):
        self.task, self.params, self.codec = task, params, codec
        self.most, self.measures = waiting, measures
        self.together = rows_at_a_time(task.config)
        self.warm = not usual
        self._usual = usual
        self._queue: deque[QueuePlace] = deque()
        self._under_way: list[QueuePlace] = []
        self._compiling = not self.warm
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

    def reserve(self) -> QueuePlace:
        """Takes the queue's last place.

        Raises:
            Full: there is none.
            Stopped: the engine ends, or has broken off.
        """
        with self._changed:
            if self._stopping or not self.alive:
                raise Stopped
            if len(self._queue) >= self.most:
                raise Full
            self._queue.append(place := QueuePlace())
            self.measures.waiting.set(len(self._queue))
        return place

    def submit(self, place: QueuePlace, job: QueuedRequest) -> None:
        """Has a job decoded when its place's turn comes.

        Raises:
            ConfigError: the model cannot do what is asked.
            Stopped: the engine ends, or has broken off.
        """
        check_requests(self.task.config, [job.request], job.how.sampling)
        with self._changed:
            if self._stopping or not self.alive:
                raise Stopped
            place.job = job
            if self._compiling:
                job.tell(Compiling(True))
            self._changed.notify()

    def leave(self, place: QueuePlace) -> None:
        """Gives a place up: another may have it at once, and nothing more is made for it."""
        with self._changed:
            place.left = True
            if place in self._queue:
                self._queue.remove(place)
                self.measures.waiting.set(len(self._queue))

    def stop(self, timeout: float) -> None:
        """Takes no more requests, and ends when those that it has are done."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        tell_compiling(lambda: self._tell_compiling(True))
        try:
            self._warm_up()
            while under_way := self._next():
                self._decode([place for place, _ in under_way], [job for _, job in under_way])
        finally:  # whatever ended it, nobody waits in vain
            with self._changed:
                self._stopping = True
                left = self._under_way + list(self._queue)
                self._queue.clear()
            for place in left:
                if place.job:
                    place.job.tell(None)

    def _warm_up(self) -> None:
        """Compiles what the usual requests need: each is decoded as far as the first thing that it makes."""
        for request, how in self._usual:
            if self._stopping:
                return
            next(self._stream([request], how), None)
        self.warm = True
        self._tell_compiling(False)

    def _next(self) -> list[tuple[QueuePlace, QueuedRequest]]:
        """The next batch; empty when it is time to end."""
        with self._changed:
            while not (ready := [(place, place.job) for place in self._queue if place.job]) and not self._stopping:
                self._changed.wait()
            kinds = [(job.how, edit_images([job.request])) for _, job in ready]
            alike = [each for each, kind in zip(ready, kinds, strict=True) if kind == kinds[0]]
            chosen = alike[: self.together]
            self._under_way = [place for place, _ in chosen]
            self._queue = deque(place for place in self._queue if place not in self._under_way)
            self.measures.waiting.set(len(self._queue))
            return chosen

    def _decode(self, places: list[QueuePlace], jobs: list[QueuedRequest]) -> None:
        measures, begin = self.measures, time.monotonic()
        for place in places:
            measures.waited.observe(begin - place.taken)
        measures.rows.observe(len(jobs))
        with measures.busy.track_inprogress():
            events = self._stream([job.request for job in jobs], jobs[0].how)
            for event in events:
                self._tell_compiling(False)
                measures.images.inc(isinstance(event, Drew))
                measures.ended.inc(isinstance(event, Ended))
                if not places[event.sample].left:
                    jobs[event.sample].tell(event)
                if all(place.left for place in places):
                    events.close()

    def _stream(self, requests: list[Request], how: Sharing) -> Generator[Event, None, None]:
        settings = how.sampling, how.writing, how.max_images, how.previews
        return stream(self.task, self.params, self.codec, requests, *settings, chunk=CHUNK)

    def _tell_compiling(self, now: bool) -> None:
        """Tells all that wait, if it is news."""
        with self._changed:
            if self._compiling == now or (now is False and not self.warm):
                return
            self._compiling = now
            for place in (*self._under_way, *self._queue):
                if place.job:
                    place.job.tell(Compiling(now))
