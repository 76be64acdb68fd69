"""What the engine compiles before it serves, and what it says of it."""

import threading

import jax
import jax.numpy as jnp
import pytest

from helpers import SEVERAL, code_codec, tiny_codec, tiny_config, token_config
from served import codec, made
from transfusion_jax.generation.interleaved import Ended, Wrote
from transfusion_jax.serving import engine as engines
from transfusion_jax.serving.compiling import tell_compiling
from transfusion_jax.serving.engine import Compiling, Engine, QueuedRequest, Stopped
from transfusion_jax.serving.measures import Measures
from transfusion_jax.serving.reading import usual_requests
from transfusion_jax.tasks.base import make_task

TASK, PARAMS = made()


@pytest.fixture
def usual():
    return usual_requests(TASK, codec())


def test_usual_requests_are_what_the_page_asks_for(usual):
    assert [request.follow for request, _ in usual] == ["image", "text"]
    assert all(how.previews == 8 and how.sampling == TASK.config.sampling for _, how in usual)


def test_it_is_warm_once_each_usual_request_has_begun(usual, monkeypatch):
    told, engine = [], Engine(TASK, PARAMS, codec(), 2, Measures(), usual)

    def stream(task, params, codec, requests, *how, **more):
        told.append((requests[0].follow, engine.warm))
        if not engine.warm:
            yield Wrote(0, "a")
            raise AssertionError("nobody asks for more")
        yield Ended(0, "end")

    monkeypatch.setattr(engines, "stream", stream)
    assert not engine.warm
    engine._thread.is_alive = lambda: True  # `warm` asks this first
    place = engine.reserve()
    engine.submit(place, QueuedRequest(*usual[0], told.append))
    del engine._thread.is_alive
    engine.start()
    engine.stop(60)
    assert not engine.alive
    assert told == [Compiling(True)] + [("image", False), ("text", False)] + [
        Compiling(False), ("image", True), Ended(0, "end")
    ]  # fmt: skip


def test_who_waits_is_told_when_it_compiles_and_when_no_more(usual, monkeypatch):
    told = {"first": [], "second": []}
    engine = Engine(TASK, PARAMS, codec(), 4, Measures())

    def stream(*_, **__):
        assert asked.wait(60)
        engine.submit(second, QueuedRequest(usual[1][0], usual[1][1], told["second"].append))
        jax.jit(lambda x: x + len(told))(jnp.zeros(3))
        yield Wrote(0, "a")
        engine.leave(second)
        yield Ended(0, "end")
        ended.set()

    asked, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(engines, "stream", stream)
    engine.start()
    engine.submit(engine.reserve(), QueuedRequest(*usual[0], told["first"].append))
    second = engine.reserve()
    asked.set()
    ended.wait(60)
    engine.stop(60)
    assert told["first"] == [Compiling(True), Compiling(False), Wrote(0, "a"), Ended(0, "end")]
    assert told["second"] == [Compiling(True), Compiling(False)]
    with pytest.raises(Stopped):
        engine.reserve()


def test_only_the_thread_that_asks_is_told_and_only_of_what_is_new():
    told = []
    tell_compiling(lambda: told.append(1))
    try:
        program = jax.jit(lambda x: x * 3 - 1)
        x = jnp.zeros(5)
        del told[:]
        program(x)
        assert told
        del told[:]
        program(x)
        assert not told
    finally:
        tell_compiling(lambda: None)


@pytest.mark.parametrize(
    ("config", "codec", "follows"),
    [
        (tiny_config(), tiny_codec(), ["image", "text"]),
        (token_config(), code_codec(), ["image", "text"]),
        (token_config("none"), code_codec(), ["text"]),
        (tiny_config(data__context_length=7), tiny_codec(), ["text"]),  # no room for an image
    ],
    ids=["latents", "codes", "text", "short"],
)
def test_what_a_model_cannot_do_is_not_compiled_for(config, codec, follows):
    assert [request.follow for request, _ in usual_requests(make_task(config), codec)] == follows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "codec"),
    [
        (tiny_config(), tiny_codec()),
        (tiny_config(**SEVERAL, data__context_length=64), tiny_codec()),
        (tiny_config(**SEVERAL, model__shape_marks=True, data__context_length=64), tiny_codec()),
        (token_config(), code_codec()),
        (token_config("none"), code_codec()),
    ],
    ids=["latents", "any shape", "its own shape", "codes", "text"],
)
def test_nothing_is_compiled_for_what_the_page_asks_first(config, codec):
    task, told, ended = make_task(config), [], threading.Event()
    usual = usual_requests(task, codec)
    engine = Engine(task, task.init(jax.random.key(0)), codec, 2, Measures(), usual)

    def tell(event):
        told.append(event)
        if event is None or isinstance(event, Ended):
            ended.set()

    engine.start()
    while not engine.warm:
        assert engine.alive
        ended.wait(0.05)
    for request, how in usual:
        ended.clear()
        engine.submit(engine.reserve(), QueuedRequest(request, how, tell))
        assert ended.wait(600)
    engine.stop(600)
    assert None not in told
    assert Compiling(True) not in told
