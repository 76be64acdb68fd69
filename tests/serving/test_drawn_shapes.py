"""Image shapes in the API: those requested, those of uploads, and those that the model supports."""

import io
import json
import math
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from served import ANY_SHAPE, app_of, codec, drawing, made, png_url, text
from transfusion_jax.config import ConfigError
from transfusion_jax.generation.drawing import patch_room
from transfusion_jax.generation.interleaved import Ended
from transfusion_jax.serving import engine as engines
from transfusion_jax.serving.app import PAGE, Served
from transfusion_jax.serving.engine import Engine, QueuedRequest
from transfusion_jax.serving.measures import Measures
from transfusion_jax.serving.reading import ASPECTS, read_request, usual_requests
from transfusion_jax.serving.schema import Generate, ImagePart, file_of
from transfusion_jax.serving.server import served_of

TASK, PARAMS = made(**ANY_SHAPE)
ONE_SHAPE, _ = made()
TRAINED = {"height": [8, 16], "width": [8, 32], "area": [128, 256]}


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(engines, "stream", lambda *_, **__: (event for event in [Ended(0, "images")]))
    with TestClient(app_of(Engine(TASK, PARAMS, codec(), 8, Measures()), trained=TRAINED)) as client:
        yield client


def read(task=TASK, **asked):
    request, _ = read_request(Generate(**({"parts": [], "follow": "image"} | asked)), task, codec(), 10**6)
    return request


@pytest.mark.parametrize(
    ("asked", "grid"),
    [
        ({}, None),
        ({"size": "32x8"}, (4, 16)),
        ({"size": "8x32"}, (16, 4)),
        ({"aspect": "1:1"}, (8, 8)),
        ({"aspect": "2:1"}, (5, 10)),
        ({"aspect": "1:2"}, (10, 5)),
        ({"aspect": "2:1", "follow": "any"}, (5, 10)),
    ],
)
def test_a_size_or_an_aspect_is_a_grid_of_patches(asked, grid):
    assert read(**asked).grid == grid


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"size": "32x8", "aspect": "4:1"}, 422, "size and aspect exclude each other"),
        ({"size": "wide"}, 422, "size"),
        ({"size": "0x8"}, 422, "size"),
        ({"size": [32, 8]}, 422, "size"),
        ({"aspect": "16x9"}, 422, "aspect"),
        ({"aspect": "1:0"}, 422, "aspect"),
        ({"size": "15x16"}, 400, "this model draws no images of 15x16 pixels"),
        ({"size": "34x2"}, 400, "nearest: 32x2"),
        ({"size": "18x16"}, 400, "an image has at most 256 pixels"),
        ({"aspect": "99:1"}, 400, "the longer side is at most 16 times the shorter one"),
        ({"aspect": "1:1", "follow": "text"}, 400, "nothing is drawn where a text follows"),
    ],
)
def test_what_cannot_be_drawn_is_refused(client, asked, status, message):
    answer = client.post("/v1/generate", json=drawing(**asked))
    assert answer.status_code == status, answer.text
    assert message in answer.text


def test_a_model_of_one_shape_takes_that_alone():
    assert read(ONE_SHAPE, size="8x8").grid == read(ONE_SHAPE, aspect="2:2").grid == (2, 2)
    for asked in ({"size": "16x8"}, {"aspect": "2:1"}):
        with pytest.raises(ConfigError, match="draws images of 8x8 pixels alone"):
            read(ONE_SHAPE, **asked)


def test_uploads_keep_their_shape():
    parts = [ImagePart(image=png_url(*size)) for size in ((12, 4), (4, 12), (8, 8))]
    shapes = [segment.latent.shape for segment in read(parts=parts).document.segments]
    assert shapes == [(4, 12, 1), (12, 4, 1), (8, 8, 1)]
    (large,) = read(parts=[ImagePart(image=png_url(120, 30))]).document.segments
    assert large.latent.shape == (8, 32, 1)


def test_each_upload_counts_by_its_own_size():
    small = [ImagePart(image=png_url(8, 4))] * 12  # 12 elements each; by the largest image's two would fit
    assert read(parts=small).document.images == 12
    with pytest.raises(
        ConfigError, match="the parts up to 14 take 169 elements and do not fit the model's context of 160"
    ):
        read(parts=small * 2)
    with pytest.raises(ConfigError, match="33 images do not fit the model's context of 160"):
        read(parts=[ImagePart(image="§")] * 33)  # none of which is decoded


def test_it_says_which_shapes_are_drawn(client):
    shapes = client.get("/v1/model").json()["shapes"]
    sides = {"multiple": 2, "largest_area": 256, "largest_side": 32}
    assert shapes == {**sides, "chosen": True, "trained": TRAINED}
    engine = Engine(*made(model__max_side=8), codec(), 8, Measures())
    with TestClient(app_of(engine)) as other:
        shapes = other.get("/v1/model").json()["shapes"]
        assert shapes == {"multiple": 4, "largest_area": 64, "largest_side": 8, "chosen": False, "trained": None}
    with TestClient(app_of(Engine(*made(), codec(), 8, Measures()))) as other:
        assert other.get("/v1/model").json()["shapes"] is None


def test_an_untrained_size_is_warned_of(client):
    sentence = "this run was trained on no images of 2x2 pixels"
    (warning,) = client.post("/v1/generate", json=drawing(size="2x2")).json()["warnings"]
    assert sentence in warning
    assert client.post("/v1/generate", json=drawing(size="16x16")).json()["warnings"] == []
    assert client.post("/v1/generate", json=drawing()).json()["warnings"] == []
    streamed = client.post("/v1/generate", json=drawing(size="2x2", stream=True)).text.split("\n\n")[0]
    name, data = streamed.split("\n")
    assert name == "event: warning"
    assert json.loads(data.removeprefix("data: ")) == {"detail": warning}


def test_previews_and_images_have_the_size_asked_for():
    with TestClient(app_of(Engine(TASK, PARAMS, codec(), 8, Measures()))) as client:
        body = drawing(size="20x10", stream=True, previews=2, steps=4)
        events = client.post("/v1/generate", json=body).text.strip().split("\n\n")
        shown = [json.loads(event.partition("data: ")[2]) for event in events if '"image"' in event]
        assert len(shown) > 1
        assert {sides_of(values["image"]) for values in shown} == {(20, 10)}


@pytest.mark.slow
def test_an_edit_keeps_the_shape_unless_told():
    with TestClient(app_of(Engine(TASK, PARAMS, codec(), 8, Measures()))) as client:
        parts = [{"type": "image", "image": png_url(8, 24)}, text("red")]
        for asked, sides in (({}, (8, 24)), ({"aspect": "1:1"}, (16, 16))):
            body = {"parts": parts, "follow": "image", "steps": 4, **asked}
            (part,) = client.post("/v1/generate", json=body).json()["parts"]
            assert sides_of(part["image"]) == sides


def sides_of(url):
    return Image.open(io.BytesIO(file_of(url))).size


def test_requests_of_several_shapes_are_decoded_together(monkeypatch):
    batches, ended, gate = [], threading.Event(), threading.Event()

    def stream(task, params, codec, requests, *_, **__):
        batches.append([request.grid for request in requests])
        assert gate.wait(60)
        yield from (Ended(number, "images") for number in range(len(requests)))

    monkeypatch.setattr(engines, "stream", stream)
    engine = Engine(TASK, PARAMS, codec(), 8, Measures())
    engine.start()
    for asked in ({}, {"size": "32x8"}, {"size": "8x32"}, {"aspect": "1:1"}):
        body = Generate(parts=[text("a")], follow="image", **asked)
        engine.submit(engine.reserve(), QueuedRequest(*read_request(body, TASK, codec(), 0), lambda _: None))
        while not batches:
            ended.wait(0.01)
    gate.set()
    engine.stop(60)
    assert batches == [[None], [(4, 16), (16, 4), (8, 8)]]


def test_a_run_says_what_it_was_trained_on():
    kept = SimpleNamespace(path=Path("runs/any"), manifest=lambda: {"shapes": TRAINED})
    assert served_of(kept, (7, "ema")) == Served("any", 7, "ema", TRAINED)
    kept.manifest = dict
    assert served_of(kept, (7, "ema")).trained is None


def test_what_the_page_asks_first_has_every_size_of_its_menu():
    script = (PAGE / "page.js").read_text()
    menu = re.findall(r'"(\d+:\d+)":', script.partition("const SHAPES = {")[2].partition("}")[0])
    assert set(menu) == {turned for aspect in ASPECTS for turned in (aspect, ":".join(aspect.split(":")[::-1]))}
    usual = [request for request, _ in usual_requests(TASK, codec())]
    assert [(request.follow, request.grid) for request in usual[:2]] == [("image", None), ("text", None)]
    model = TASK.config.model
    rooms = [patch_room(math.prod(request.grid), model) for request in usual[2:]]
    assert len(rooms) == len(set(rooms))
    assert set(rooms) == {patch_room(math.prod(read(aspect=aspect).grid), model) for aspect in menu}
