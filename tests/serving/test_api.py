"""The API on a tiny model: what it answers, what it refuses, and that nothing is lost."""

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from served import app_of, codec, drawing, made, png_url, text
from transfusion_jax.generation.interleaved import Request, generate
from transfusion_jax.generation.prompt import prompt_of
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.serving.engine import Engine
from transfusion_jax.serving.measures import Measures

TASK, PARAMS = made()
SETTINGS = {"max_tokens": 6, "max_images": 2}


@pytest.fixture(scope="module")
def client():
    engine = Engine(TASK, PARAMS, codec(), waiting=8, measures=Measures())
    with TestClient(app_of(engine), raise_server_exceptions=False) as client:
        yield client


def test_what_is_made_is_what_the_same_request_gives_elsewhere(client):
    body = {"parts": [text("ab")], "follow": "any", "seed": 5, "temperature": 1.5, **SETTINGS}
    answer = client.post("/v1/generate", json=body)
    assert answer.status_code == 200, answer.text
    writing = Writing(6, temperature=1.5)
    (expected,) = generate(TASK, PARAMS, codec(), [Request(prompt_of("ab", codec()), seed=5)], None, writing, 2)
    parts = answer.json()["parts"]
    assert [part["type"] for part in parts] == [
        "text" if isinstance(s, str) else "image" for s in expected.segments
    ]
    assert answer.json()["reason"] == expected.reason
    assert "".join(part["text"] for part in parts if part["type"] == "text") == expected.text


def test_an_image_is_drawn_and_the_seed_fixes_it(client):
    drawn = [
        image_of(client, seed=seed, guidance=2.0, steps=steps) for seed, steps in ((1, 4), (1, 4), (2, 4), (1, 5))
    ]
    assert drawn[0].shape == (8, 8, 3)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert all(np.any(drawn[0] != other) for other in drawn[2:])


def test_a_stream_tells_text_previews_images_and_the_end(client):
    body = {"parts": [text("ab")], "follow": "image", "stream": True, "previews": 2, "steps": 6}
    with client.stream("POST", "/v1/generate", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [event.split("\n") for event in "".join(answer.iter_text()).strip().split("\n\n")]
    names = [name for name, _ in events]
    assert names[:-2] in (["event: preview"], ["event: preview"] * 2)  # of two that nobody has read, one stays
    assert names[-2:] == ["event: image", "event: end"]
    values = [json.loads(data.removeprefix("data: ")) for _, data in events]
    assert [(v["done"], v["total"]) for v in values[:-2]] in ([(2, 6), (4, 6)], [(4, 6)])
    assert values[-1] == {"reason": "images"}
    written = {"parts": [text("ab")], "follow": "text", "stream": True, "max_tokens": 9}
    with client.stream("POST", "/v1/generate", json=written) as answer:
        assert "event: end" in "".join(answer.iter_text())


def test_an_upload_is_put_into_words_and_edited(client):
    answer = client.post("/v1/caption", json={"image": png_url(), "max_tokens": 5})
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"text"}
    body = {"parts": [{"type": "image", "image": png_url()}, text("red")], "follow": "image", "image_guidance": 1.5}
    assert client.post("/v1/generate", json=body).json()["parts"][0]["type"] == "image"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "parts"),
        ({"parts": [{"type": "text"}]}, 422, "text"),
        ({"parts": [text("a")], "colour": "red"}, 422, "colour"),
        ({"parts": [text("a")], "seed": -1}, 422, "seed"),
        ({"parts": [text("a")], "steps": "4"}, 422, "steps"),
        ({"parts": [text("a")], "temperature": 1e999}, 422, "temperature"),
        ({"parts": [text("a")], "follow": "image", "steps": 1001}, 400, "must not exceed diffusion.timesteps"),
        ({"parts": [text("a")], "sampler": "heun"}, 400, "does not go with diffusion.objective"),
        ({"parts": [text("a" * 500)]}, 400, "the model's context is 128"),
        ({"parts": [text("a")], "previews": 2}, 400, "previews go with a stream"),
        ({"parts": [text("a")], "top_k": 3}, 400, "go with a temperature above 0"),
        ({"parts": [text("a")], "image_guidance": 3.0}, 400, "this is no such prompt"),
        ({"parts": [{"type": "image", "image": "§"}]}, 400, "data URL or base64"),
        (
            {"parts": [{"type": "image", "image": "aGVsbG8="}]},
            400,
            "part 1 is no image that can be read: not an image",
        ),
    ],
)
def test_bad_input_is_named(client, body, status, message):
    answer = client.post("/v1/generate", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert message in answer.text


def test_uploads_are_bounded(client):
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")  # 18 kB of file, 144 million pixels
    huge = base64.b64encode(bomb.getvalue()).decode()
    answer = client.post("/v1/caption", json={"image": huge})
    assert (answer.status_code, "too many pixels" in answer.text) == (400, True)


def test_it_says_what_it_serves_and_how_it_is(client):
    assert client.get("/health").json() == {"status": "ok"}
    model = client.get("/v1/model").json()
    assert (model["name"], model["step"], model["image_size"], model["context"]) == ("tiny", 7, [8, 8, 1], 128)
    assert model["samplers"] == ["ancestral", "ddim", "dpm++"]
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/health", "/metrics", "/v1/model", "/v1/generate", "/v1/caption"}
    page = client.get("/")
    assert "text/html" in page.headers["content-type"]
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in page.text.split('"'):
        if path.startswith("/page/"):
            assert client.get(path).status_code == 200, path
    assert client.get("/page/../app.py").status_code == 404
    assert client.get("/nowhere").status_code == 404
    assert 'transfusion_requests_total{status="200"}' in client.get("/metrics").text


def test_what_waits_is_decoded_together_and_too_many_are_turned_away():
    engine = Engine(TASK, PARAMS, codec(), waiting=6, measures=Measures())
    long, short = {"steps": 900}, {"steps": 4}
    with TestClient(app_of(engine)) as client, ThreadPoolExecutor(20) as pool:
        ask = lambda seed, how: client.post("/v1/generate", json=drawing(seed=seed, **how))  # noqa: E731
        first = pool.submit(ask, 0, long)
        while not engine.measures.busy._value.get():
            threading.Event().wait(0.01)
        answers = [answer.result() for answer in [pool.submit(ask, seed, short) for seed in range(12)]]
        assert first.result().status_code == 200
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 503}
        assert codes.count(200) == 6
        assert all(a.headers["retry-after"] for a in answers if a.status_code == 503)
        assert 'transfusion_batch_rows_bucket{le="8.0"} 2.0' in client.get("/metrics").text
        for seed, answer in enumerate(answers):
            if answer.status_code == 200:
                alone = client.post("/v1/generate", json=drawing(seed=seed, **short))
                np.testing.assert_allclose(pixels(answer), pixels(alone), atol=1)


def test_one_that_nobody_waits_for_does_not_hold_up_the_others():
    engine = Engine(TASK, PARAMS, codec(), waiting=8, measures=Measures())
    with TestClient(app_of(engine)) as client:
        body = drawing(steps=900, stream=True, previews=20)
        with client.stream("POST", "/v1/generate", json=body) as answer:
            next(answer.iter_text())
        assert client.post("/v1/generate", json=drawing(steps=4)).status_code == 200
    assert not engine.alive


def image_of(client, **how):
    return pixels(client.post("/v1/generate", json=drawing(**how)))


def pixels(answer):
    (part,) = answer.json()["parts"]
    file = base64.b64decode(part["image"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(file))).astype(int)
