"""A client that leaves frees its place and its bytes at once, and decoding for it stops."""

import asyncio
import json
import threading

import pytest

from exchange import Exchange, get, post, running
from served import app_of, codec, drawing, made, png_url
from transfusion_jax.generation.interleaved import Draws, Drew, Ended, Wrote
from transfusion_jax.serving import engine as engines
from transfusion_jax.serving.engine import Compiling, Engine
from transfusion_jax.serving.inbox import Inbox
from transfusion_jax.serving.limits import ServerLimits
from transfusion_jax.serving.measures import Measures

TASK, PARAMS = made()


class Decoder:
    """Stands in for `stream`: tells events when the test lets it, and remembers what was asked and ended."""

    def __init__(self):
        self.batches, self.closed = [], []
        self.next = threading.Semaphore(0)

    def __call__(self, task, params, codec, requests, *how, **more):
        self.batches.append([request.seed for request in requests])
        try:
            while True:
                assert self.next.acquire(timeout=60)
                for number in range(len(requests)):
                    yield Wrote(number, "a")
        finally:
            self.closed.append([request.seed for request in requests])


@pytest.fixture
def decoder(monkeypatch):
    monkeypatch.setattr(engines, "stream", decoder := Decoder())
    return decoder


@pytest.fixture
def engine():
    return Engine(TASK, PARAMS, codec(), 2, Measures())


async def until(condition):
    """Waits for other threads."""
    while not condition():
        await asyncio.sleep(0.001)


def waiting(engine):
    return engine.measures.waiting._value.get()


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_the_queue_makes_room_at_once(engine, decoder, stream):
    async def leaving():
        async with running(app := app_of(engine)):
            first = post(app, drawing(seed=1))
            await until(lambda: decoder.batches)
            second, third = (post(app, drawing(seed=seed, stream=stream)) for seed in (2, 3))
            await until(lambda: waiting(engine) == 2)
            assert await post(app, drawing(seed=4)).answer() == 503
            await second.leave()
            assert waiting(engine) == 1  # while the first is still decoded
            fifth = post(app, drawing(seed=5))
            await until(lambda: waiting(engine) == 2)
            for exchange in (first, third, fifth):
                await exchange.leave()
            decoder.next.release(10)
            assert engine.measures.requests.labels("499")._value.get() == 4
            assert await get(app, "/health") == 200

    asyncio.run(leaving())
    assert decoder.batches == [[1]]
    assert decoder.closed == [[1]]


def test_who_leaves_while_sending_gives_the_bytes_back(engine, decoder):
    async def leaving():
        async with running(app := app_of(engine, ServerLimits(bodies=1000, body=1000))):
            for _ in range(3):
                asked = Exchange(app, "/v1/generate")
                await asked.send(b" " * 900)
                assert waiting(engine) == 0  # who has not asked yet takes nobody's place
                await asked.leave()
                assert asked.status is None

    asyncio.run(leaving())
    assert not decoder.batches


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/caption"])
def test_who_leaves_while_images_are_decoded_makes_room_at_once(engine, decoder, path):
    image = {"image": png_url()}
    body = image if path == "/v1/caption" else {"parts": [{"type": "image", **image}] * 3}

    async def leaving():
        async with running(app := app_of(engine)):
            gate = threading.Event()
            for _ in range(ServerLimits().readers):
                app.state.readers.submit(gate.wait)
            try:
                asked = [Exchange(app, path) for _ in range(2)]
                for exchange in asked:
                    await exchange.send(json.dumps(body).encode(), more=False)
                assert await post(app, drawing()).answer() == 503
                for exchange in asked:
                    await exchange.leave()
                assert waiting(engine) == 0
            finally:
                gate.set()

    asyncio.run(leaving())
    assert not decoder.batches


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_more_is_made_for_who_left(engine, decoder, stream):
    async def leaving():
        async with running(app := app_of(engine)):
            asked = post(app, drawing(seed=1, stream=stream))
            await until(lambda: decoder.batches)
            decoder.next.release()
            if stream:
                await asked.heard.wait()
            await asked.leave()
            decoder.next.release()
            await until(lambda: decoder.closed)

    asyncio.run(leaving())
    assert decoder.closed == [[1]]


def test_a_batch_goes_on_for_those_who_stay(engine, decoder):
    async def leaving():
        async with running(app := app_of(engine)):
            first = post(app, drawing(seed=1))
            await until(lambda: decoder.batches)
            leaves, stays = (post(app, drawing(seed=seed, stream=True)) for seed in (2, 3))
            await until(lambda: sum(place.job is not None for place in engine._queue) == 2)
            await first.leave()
            decoder.next.release(2)
            await until(lambda: stays.body)
            await leaves.leave()
            before = len(stays.body)
            decoder.next.release()
            await until(lambda: len(stays.body) > before)
            await stays.leave()
            decoder.next.release()
            await until(lambda: len(decoder.closed) == 2)

    asyncio.run(leaving())
    assert decoder.batches == [[1], [2, 3]]


def test_what_a_slow_reader_leaves_unread_never_outgrows_its_answer():
    async def slow():
        inbox = Inbox()
        told = [Compiling(True), Compiling(False)]
        told += [Draws(0, None, done, 100) for done in range(100)] + [Drew(0, "image")]
        told += [Wrote(0, str(n % 10)) for n in range(10_000)] + [Ended(0, "end")]
        for event in told:
            inbox.tell(event)
        await until(lambda: len(inbox) == 5)
        found = [await inbox.get() for _ in range(5)]
        assert found[:3] == [Compiling(False), Draws(0, None, 99, 100), Drew(0, "image")]
        assert found[3].text == "0123456789" * 1000
        assert found[4] == Ended(0, "end")
        assert len(inbox) == 0

    asyncio.run(slow())
