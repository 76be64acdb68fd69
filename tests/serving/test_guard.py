"""Requests within and beyond every bound, each beside health checks that are answered before it is."""

import asyncio
import base64
import io
import json
import struct
import threading
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from exchange import JSON, Exchange, get, running
from served import app_of, codec, made, text
from transfusion_jax.generation.interleaved import Ended
from transfusion_jax.serving import engine
from transfusion_jax.serving.engine import Engine
from transfusion_jax.serving.guard import CAPTION, GENERATE
from transfusion_jax.serving.limits import ServerLimits
from transfusion_jax.serving.measures import Measures

TASK, PARAMS = made()
SECRET = "c0ffee"  # in what is sent; no answer repeats it
PIECE = 2**16  # bytes: what uvicorn hands on at a time
LIMITS = ServerLimits(body=2**21, bodies=3 * 2**20, escapes=2**12, pixels=10**6)
LONGEST_ANSWER = 4096


def drawn(size):
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    return {"type": "image", "image": base64.b64encode(file.getvalue()).decode()}


def forged(width, height):
    """The head of a PNG that says how large it is, and nothing more."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return {"type": "image", "image": base64.b64encode(file + b"\0\0\0\0IDAT").decode()}


def keys(count):
    return "{" + ",".join(f'"{SECRET}{n}":0' for n in range(count)) + "}"


def parts(*given_parts, **more):
    return json.dumps({"parts": given_parts, "max_tokens": 1, "follow": "text", **more})


WIDE = {"utf-16-le": 422, "utf-16-be": 422, "utf-32-le": 422, "utf-32-be": 422}  # as UTF-8 they are NULs
BODIES = {  # name: the body, and the statuses that may answer it
    "fine": (parts(text("a")), 200),
    "fine, with as many escapes as may be": (parts(text("\n" * 100)), 200),
    "fine, with blanks to the bound": (parts(text("a")) + " " * (2**21 - 100), 200),
    "one byte too many": (parts(text("a")).ljust(2**21 + 1), 413),
    "unknown keys without end": (keys(2**16), 413),
    "unknown keys": (keys(300), 422),
    "unknown keys of parts": (json.dumps({"parts": [{SECRET + str(n): 0 for n in range(300)}]}), 422),
    "one long key": (json.dumps({SECRET * 10**5: 0}), 422),
    "a kind that is none": (parts({"type": SECRET * 1000}), 422),
    "kinds that are none": (parts(*[{"type": SECRET}] * 64), 422),
    "words for numbers": (parts(text("a"), seed=SECRET, steps=SECRET, top_p=SECRET), 422),
    "too many parts": (parts(*[text("a")] * 65), 422),
    "parts without end": (parts(*[text("a")] * 10**4), 413),
    "too long a text": (parts(text(SECRET * 4000)), 422),
    "deep": ('{"parts":' + "[" * 7 + "]" * 7 + "}", 422),
    "too deep": ('{"parts":' + "[" * 8 + "]" * 8 + "}", 413),
    "deep without end": ("[" * 10**6, 413),
    "a number without end": ('{"seed":' + "9" * 10**6, 413),
    "a long number": ('{"parts":[],"seed":' + "9" * 4000 + "}", 422),
    "a long fraction": ('{"parts":[],"temperature":' + "9" * 4000 + ".5" + "}", 422),
    "escapes": ('{"parts":["' + "\\u0041" * 2**12 + '"]}', 422),
    "too many escapes": ('{"parts":["' + "\\\\" * 2**12 + '"]}', 413),
    "numbers beyond any": (parts(text("a"), temperature=1e999), 422),
    "half a surrogate": ('{"parts":[{"type":"text","text":"\\ud800"}]}', 422),
    "half a surrogate as a key": ('{"\\ud800":0}', 422),
    "cut off": (parts(text(SECRET))[:-3], 422),
    "nothing": ("", 422),
    "null": ("null", 422),
    "a word": (f'"{SECRET}"', 422),
    "no JSON": (SECRET, 422),
    "bytes": (b"\x00\xff\xfe" * 1000, 400),
    "NUL without end": (b"\x00" * 10**6, 413),
    "UTF-8 with a mark": (parts(text("a")).encode("utf-8-sig"), 200),
    "UTF-16 with a mark": (parts(text("a")).encode("utf-16"), 400),
    **{f"{name} without a mark": (parts(text("a")).encode(name), status) for name, status in WIDE.items()},
    "no UTF-8": (b'{"parts":[{"type":"text","text":"\xff"}]}', 400),
    "no base64": (parts({"type": "image", "image": SECRET + "§"}), 400),
    "no image": (parts({"type": "image", "image": base64.b64encode(SECRET.encode()).decode()}), 400),
    "an image": (parts(drawn((1000, 1000))), 200),
    "one pixel too many": (parts(drawn((1000, 1001))), 400),
    "a bomb": (parts(drawn((12_000, 12_000))), 400),
    "a head that says little": (parts(forged(10, 10)), 400),
    "a head that says much": (parts(forged(2**14, 2**14)), 400),
    "a head that says more than there is": (parts(forged(2**31 - 1, 2**31 - 1)), 400),
    "a head that says nothing": (parts(forged(0, 0)), 400),
    "images that are too large together": (parts(*[drawn((900, 900))] * 2), 400),
    "more images than the context holds": (parts(*[drawn((8, 8))] * 64), 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_health_is_answered_before_any_body(name, app):
    body, status = BODIES[name]
    body = body.encode() if isinstance(body, str) else body
    assert asyncio.run(beside_health(app, body)) == status


def test_19_mib_of_unknown_keys_are_refused_at_once():
    app = app_of(Engine(TASK, PARAMS, codec(), 4, Measures()))

    async def refused():
        async with running(app):
            asked = Exchange(app, "/v1/generate", headers=[*JSON, (b"content-length", b"%d" % (19 * 2**20))])
            await asked.send(keys(2**13).encode()[:PIECE])  # of 304 such pieces
            assert asked.done
            assert await asked.answer() == 413
            assert "4096 characters outside its strings" in asked.body.decode()

    asyncio.run(refused())


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["text", "image"]),
        lambda inner: (
            st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["parts", "type", "seed", "a"]), inner)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_health_is_answered_before_any_nonsense(body):
    assert asyncio.run(beside_health(fresh(), body)) in (200, 400, 413, 422)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"content-type", b"application/json"), (b"content-length", b"2097153")], 413),
        ([(b"content-type", b"application/json"), (b"content-length", b"9" * 5000)], 413),
        ([(b"content-type", b"application/json"), (b"content-length", b"\xb2")], 413),
        ([(b"content-type", b"application/json"), (b"content-length", b"-1")], 413),
        ([(b"content-type", b"text/plain")], 415),
        ([(b"content-type", b"application/x-www-form-urlencoded")], 415),
        ([(b"content-type", b"multipart/form-data; boundary=x")], 415),
        ([(b"content-type", b"application/jsonp")], 415),
        ([(b"content-type", b"\xff" * 1000)], 415),
        ([], 415),
        ([*JSON, (b"origin", b"http://evil.example")], 403),
        ([*JSON, (b"host", b"evil.example")], 421),
        ([(b"host", b"evil.example"), *JSON], 421),
    ],
)
def test_what_headers_say_is_enough_to_refuse(app, headers, status):
    async def refused():
        async with running(app):
            asked = Exchange(app, "/v1/generate", headers=headers)
            assert await asked.answer() == status  # nothing was sent
            short_and_told(asked)

    asyncio.run(refused())


def test_a_token_is_asked_for_before_anything_is_read():
    locked = app_of(Engine(TASK, PARAMS, codec(), 4, Measures()), LIMITS, token="s3cret")
    shown = (b"authorization", b"Bearer s3cret")

    async def asking():
        async with running(locked):
            refused = Exchange(locked, "/v1/generate")
            assert await refused.answer() == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            short_and_told(refused)
            for path in ("/v1/model", "/metrics", "/openapi.json"):
                assert await get(locked, path) == 401
                assert await get(locked, path, [shown]) == 200
            for path in ("/", "/health", "/page/page.js"):
                assert await get(locked, path) == 200
            asked = Exchange(locked, "/v1/generate", headers=[*JSON, shown])
            await asked.send(parts(text("a")).encode(), more=False)
            assert await asked.answer() == 200

    asyncio.run(asking())
    paths = locked.openapi()["paths"]
    asks = {path for path, how in paths.items() for operation in how.values() if "security" in operation}
    assert asks == {"/metrics", "/v1/model", "/v1/generate", "/v1/caption"}
    assert "securitySchemes" not in fresh().openapi()["components"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/health", 405), ("/", 405), ("/page/page.js", 405), ("/v1/generate", 401), ("/v1/generate\n", 401)],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "QUERY"])
def test_strangers_send_no_body_at_all(method, path, status):
    app = app_of(Engine(TASK, PARAMS, codec(), 4, Measures()), LIMITS, token="s3cret")

    async def sending():
        async with running(app):
            asked = Exchange(app, path, method)
            assert await asyncio.wait_for(asked.answer(), 60) == status  # nothing was sent
            short_and_told(asked)
            assert guard_of(app).bodies.held == 0

    asyncio.run(sending())


def test_the_paths_that_take_a_body_are_those_whose_bodies_are_bounded(app):
    paths = {
        path for path, how in app.openapi()["paths"].items() if any("requestBody" in each for each in how.values())
    }
    assert paths == {GENERATE, CAPTION}


@pytest.mark.parametrize("path", ["/v1/generate\n", "/v1/generate/", "/v1/model", "/nowhere"])
def test_elsewhere_no_body_is_taken(app, path):
    async def sending():
        async with running(app):
            asked = Exchange(app, path)
            assert await asyncio.wait_for(asked.answer(), 60) >= 307  # nothing was sent

    asyncio.run(sending())


@pytest.mark.parametrize("length", [b"1", b"0", b"2097152"])
def test_a_false_length_changes_nothing(app, length):
    headers = [*JSON, (b"content-length", length)]
    assert asyncio.run(beside_health(app, b" " * (2**21 + 1), headers)) == 413


def test_all_bodies_together_are_bounded_and_given_back(app):
    async def several():
        async with running(app):
            assert await get(app, "/health") == 200
            guard = guard_of(app)
            slow = [Exchange(app, "/v1/generate") for _ in range(3)]
            for exchange in slow[:2]:
                await exchange.send(b" " * 1_500_000)
            assert guard.bodies.held == 3_000_000
            await slow[2].send(b" " * 1_500_000)
            assert await slow[2].answer() == 503
            assert slow[2].headers["retry-after"]
            assert await get(app, "/health") == 200
            for exchange in slow[:2]:
                await exchange.leave()
            assert guard.bodies.held == 0
            last = Exchange(app, "/v1/generate")
            await last.send(b" " * 1_500_000)
            await last.send(b"", more=False)
            assert await last.answer() == 422

    asyncio.run(several())


def test_a_slow_body_times_out():
    app = app_of(Engine(TASK, PARAMS, codec(), 2, Measures()), ServerLimits(body_seconds=0.05))

    async def slow():
        async with running(app):
            asked = Exchange(app, "/v1/generate")
            while not asked.done:
                await asked.send(b" ")
                await asyncio.sleep(0.001)
            assert asked.status == 408
            assert asked.headers["connection"] == "close"
            assert "within 0.05 seconds" in asked.body.decode()

    asyncio.run(slow())


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_decoded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "stream", lambda *_, **__: (Ended(0, "end") for _ in range(1)))
        yield


@pytest.fixture
def app():
    return fresh()


def fresh():
    return app_of(Engine(TASK, PARAMS, codec(), 4, Measures()), LIMITS)


async def beside_health(app, body, headers=JSON):
    """The status of a body; health is asked for between all its pieces, and once more when it is whole."""
    async with running(app):
        gate = threading.Event()
        readers = app.state.readers
        for _ in range(LIMITS.readers):
            readers.submit(gate.wait)  # whatever is parsed or decoded waits for this
        try:
            asked = Exchange(app, "/v1/generate", headers=headers)
            pieces = [body[at : at + PIECE] for at in range(0, len(body), PIECE)] or [b""]
            for number, piece in enumerate(pieces, 1):
                assert await get(app, "/health") == 200
                assert not asked.done
                await asked.send(piece, more=number < len(pieces))
                if asked.done:
                    break
            else:
                assert await get(app, "/health") == 200
                assert not asked.done
        finally:
            gate.set()
        status = await asked.answer()
        if status != 200:
            short_and_told(asked)
        return status


def short_and_told(asked):
    """The answer says why, in few words, and repeats nothing of what was sent but the beginnings of names."""
    assert len(asked.body) <= LONGEST_ANSWER
    detail = json.loads(asked.body)["detail"]
    words = [detail] if isinstance(detail, str) else [fault["msg"] for fault in detail]
    assert words
    assert not any(SECRET in word for word in words)
    if not isinstance(detail, str):
        assert len(detail) <= LIMITS.faults + 1
        assert all(len(str(name)) <= LIMITS.name for fault in detail for name in fault["loc"])


def guard_of(app):
    """The guard in the application's stack."""
    layer = app.middleware_stack
    while not hasattr(layer, "bodies"):
        layer = layer.app
    return layer
