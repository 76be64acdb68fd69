"""The page in Chromium: what a person does with mouse, keyboard or phone."""

import base64
import contextlib
import json
import os
import threading
import urllib.request
from urllib.parse import quote

import pytest
from playwright.sync_api import expect, sync_playwright

from served import ANY_SHAPE, codec, made, png_url, server
from transfusion_jax.serving import engine as engines
from transfusion_jax.serving.measures import Measures
from transfusion_jax.serving.reading import usual_requests

CHROMIUM = "/usr/bin/chromium"
REFUSED = "the server responded with a status of 400"  # Chromium's own words; the page has some, too
WAIT = 60_000  # ms: the first image is compiled for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url():
    with server() as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    with opened(browser, url) as page:
        yield page


@contextlib.contextmanager
def opened(browser, url, *expected):
    """The page at an address, in a browser that is new to it; the console holds nothing but what is expected."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda line: (
            faults.append(line.text)
            if line.type == "error" and not any(words in line.text for words in (REFUSED, *expected))
            else None
        ),
    )
    site = url.partition("/#")[0]
    page.on(
        "request", lambda asked: faults.append(asked.url) if not asked.url.startswith((site, "data:")) else None
    )
    page.goto(url)
    yield page
    context.close()
    assert not faults


def test_one_can_type_at_once(page):
    expect(page.get_by_label("Prompt")).to_be_focused()
    page.keyboard.type("a four")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_label("Prompt")).to_be_focused()
    expect(page.get_by_role("img", name="a drawn image")).to_be_visible()


def test_it_says_compiling_while_programs_are_compiled(browser, monkeypatch):
    gate, decode = threading.Event(), engines.stream

    def stream(*given, **how):
        assert gate.wait(WAIT / 1000)
        yield from decode(*given, **how)

    monkeypatch.setattr(engines, "stream", stream)
    task, params = made()
    engine = engines.Engine(task, params, codec(), 8, Measures(), usual_requests(task, codec()))
    with server(engine) as url, opened(browser, url) as page:
        try:
            expect(page.get_by_text("compiling: the first answer takes a while")).to_be_visible()
            page.keyboard.type("a four")
            page.keyboard.press("Enter")
            expect(page.get_by_role("listitem").last).to_contain_text("compiling")
            shot(page, "compiling")
        finally:
            gate.set()
        expect(page.get_by_role("img", name="a drawn image")).to_be_visible()
        expect(page.get_by_text("compiling")).to_have_count(0)


@pytest.mark.parametrize("width", [1000, 360])
def test_it_asks_for_the_token_once(browser, width):
    with (
        server(token="a+b/s3cret&=#%") as url,
        opened(browser, url, "the server responded with a status of 401") as page,
    ):
        page.set_viewport_size({"width": width, "height": 640})
        expect(page.get_by_label("Token")).to_be_focused()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("does not take this token")
        expect(page.get_by_label("Token")).to_be_focused()
        shot(page, f"token-{width}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.keyboard.type("a+b/s3cret&=#%")
        page.keyboard.press("Enter")
        expect(page.get_by_label("Prompt")).to_be_focused()
        page.reload()
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        asks_for_text(page)
        page.evaluate("sessionStorage.setItem('transfusion-token', 'old')")
        page.get_by_label("Prompt").fill("kept")
        page.keyboard.press("Enter")
        page.get_by_label("Token").fill("a+b/s3cret&=#%")
        page.keyboard.press("Enter")
        expect(page.get_by_label("Prompt")).to_have_value("kept")
        expect(page.get_by_role("listitem")).to_have_count(2)


def test_the_link_that_the_command_prints_holds_the_token(browser):
    token = "a+b/s3cret&=#%"
    with server(token=token) as url, opened(browser, f"{url}/#token={quote(token, safe='')}") as page:
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        assert page.url == f"{url}/"
        asks_for_text(page)


def asks_for_text(page):
    page.get_by_label("What is made").select_option("text")
    page.get_by_label("Prompt").fill("once")
    page.keyboard.press("Enter")
    expect(page.get_by_role("listitem")).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def shot(page, name):
    """A picture of the page, where the environment names a folder for it."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png")


def test_an_image_appears_and_sharpens(page):
    seen = []
    page.on("response", lambda answer: seen.append(answer.headers.get("content-type", "")))
    page.get_by_label("Prompt").fill("a four")
    page.get_by_role("button", name="Send").click()
    image = page.get_by_role("img", name="a drawn image")
    expect(image).to_be_visible()
    assert image.evaluate("img => img.naturalWidth") == 8
    expect(page.get_by_role("status")).to_have_text("The model made an image")
    shot(page, "desktop")
    assert any(kind.startswith("text/event-stream") for kind in seen)


def test_text_streams_to_its_end_by_keyboard_alone(page):
    page.get_by_label("What is made").select_option("text")
    page.get_by_label("Prompt").focus()
    page.keyboard.type("once")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("more")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    asked, made = page.get_by_role("listitem").all()
    assert asked.text_content().endswith("once\nmore")
    assert len(made.text_content()) > len("Model: ") + 10


def test_an_upload_is_captioned_and_edited(page):
    upload(page)
    expect(page.get_by_label("What is made")).to_have_value("text")  # an image alone asks for words
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("img", name="an uploaded image")).to_be_visible()
    expect(page.get_by_role("listitem")).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    page.get_by_role("button", name="Use").first.click()
    page.get_by_label("What is made").select_option("image")
    page.keyboard.press("Tab")
    page.get_by_label("Prompt").fill("make it red")
    with page.expect_request("**/v1/generate") as sent:
        page.keyboard.press("Enter")
    body = json.loads(sent.value.post_data)
    assert [part["type"] for part in body["parts"]] == ["image", "text"]
    assert body["follow"] == "image"
    expect(page.get_by_role("img", name="a drawn image")).to_be_visible()


def test_settings_are_sent_and_seeds_repeat(page):
    page.get_by_text("Settings").click()
    drawn = []
    for seed in ("3", "3", "4"):
        page.get_by_label("Seed").fill(seed)
        page.get_by_label("Steps").fill("5")
        page.get_by_label("Guidance").fill("1.5")
        page.get_by_label("Prompt").fill("a four")
        with page.expect_request("**/v1/generate") as sent:
            page.keyboard.press("Enter")
        body = json.loads(sent.value.post_data)
        assert (body["seed"], body["steps"], body["guidance"]) == (int(seed), 5, 1.5)
        expect(page.get_by_role("img", name="a drawn image")).to_have_count(len(drawn) + 1)
        drawn.append(page.get_by_role("img", name="a drawn image").last.get_attribute("src"))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_reload_keeps_the_conversation_and_it_can_begin_anew(page):
    page.get_by_label("Prompt").fill("a four")
    page.keyboard.press("Enter")
    expect(page.get_by_role("img", name="a drawn image")).to_be_visible()
    page.reload()
    expect(page.get_by_role("img", name="a drawn image")).to_be_visible()
    page.get_by_text("Settings").click()
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("listitem")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    expect(page.get_by_role("listitem")).to_have_count(0)


def test_what_the_server_refuses_is_shown_and_the_next_request_goes_through(page):
    page.get_by_label("What is made").select_option("text")
    page.get_by_label("Prompt").fill("x" * 127)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("the model's context is 128: shorten the prompt")
    page.get_by_label("Prompt").fill("once")
    page.keyboard.press("Enter")
    expect(page.get_by_role("listitem")).to_have_count(4)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_a_phone_shows_all_of_it(page):
    page.set_viewport_size({"width": 360, "height": 640})
    page.get_by_text("Settings").click()
    upload(page)
    page.get_by_label("Prompt").fill("word " * 10 + "w" * 60)
    page.get_by_label("What is made").select_option("image")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("img", name="a drawn image")).to_be_visible()
    shot(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for name in ("Send", "Use", "New conversation"):
        box = page.get_by_role("button", name=name).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


@pytest.fixture(scope="module")
def any_shape():
    engine = engines.Engine(*made(**ANY_SHAPE), codec(), 8, Measures())
    with server(engine, trained={"height": [6, 32], "width": [6, 32], "area": [36, 256]}) as url:
        yield url


@pytest.mark.parametrize("width", [1280, 375])
def test_a_wide_and_a_tall_image_stand_in_one_conversation(browser, any_shape, width, monkeypatch):
    asked, decode = threading.Semaphore(0), engines.stream

    def stream(*given, **how):
        assert asked.acquire(timeout=WAIT / 1000)
        yield from decode(*given, **how)

    monkeypatch.setattr(engines, "stream", stream)
    with opened(browser, any_shape) as page:
        page.set_viewport_size({"width": width, "height": 900})
        for number, (shape, size) in enumerate({"wide": (20, 10), "tall": (10, 20)}.items(), 1):
            page.get_by_label("Shape").select_option(label=shape)
            page.get_by_label("Prompt").fill(f"a {shape} picture")
            page.keyboard.press("Enter")
            empty = page.locator(".blank").bounding_box()
            asked.release()
            drawn = page.get_by_role("img", name="a drawn image")
            expect(drawn).to_have_count(number)
            assert drawn.last.evaluate("img => [img.naturalWidth, img.naturalHeight]") == list(size)
            assert proportion(drawn.last) == pytest.approx(size[0] / size[1], rel=0.02)
            assert drawn.last.bounding_box() == pytest.approx(empty | {"y": drawn.last.bounding_box()["y"]}, abs=1)
        page.get_by_label("Shape").select_option("free")
        page.get_by_label("width in pixels").fill("32")
        page.get_by_label("height in pixels").fill("4")
        page.get_by_label("Prompt").fill("a strip")
        page.keyboard.press("Enter")
        asked.release()
        expect(drawn).to_have_count(3)
        expect(page.get_by_role("listitem").last).to_contain_text(
            "this run was trained on no images of 32x4 pixels"
        )
        assert proportion(drawn.last) == pytest.approx(8, rel=0.02)
        shot(page, f"shapes-{width}")
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=f"{folder}/shapes-{width}-all.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for box in (image.bounding_box() for image in page.get_by_role("img").all()):
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


def test_an_edit_of_an_upload_keeps_its_shape(browser, any_shape):
    with opened(browser, any_shape) as page:
        upload(page, 16, 8)
        assert proportion(page.get_by_role("img", name="the image that goes with the prompt")) == pytest.approx(
            2, rel=0.05
        )
        page.get_by_label("What is made").select_option("image")
        page.get_by_label("Prompt").fill("make it red")
        page.get_by_label("Prompt").press("Enter")
        assert proportion(page.get_by_role("img", name="an uploaded image")) == pytest.approx(2, rel=0.02)
        drawn = page.get_by_role("img", name="a drawn image")
        expect(drawn).to_be_visible()
        assert drawn.evaluate("img => [img.naturalWidth, img.naturalHeight]") == [16, 8]


def test_what_is_no_size_is_not_sent(browser, any_shape):
    with opened(browser, any_shape) as page:
        page.get_by_label("Shape").select_option("free")
        page.get_by_label("height in pixels").fill("7")
        page.get_by_label("Prompt").fill("odd")
        page.keyboard.press("Enter")
        expect(page.get_by_label("height in pixels")).to_be_focused()
        expect(page.get_by_role("listitem")).to_have_count(0)
        page.get_by_label("height in pixels").fill("32")
        page.get_by_label("Prompt").press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("this model draws no images of 16x32 pixels")


def test_a_model_of_one_shape_has_no_menu_for_it(page):
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    expect(page.get_by_label("What is made")).to_be_visible()
    expect(page.get_by_label("Shape")).to_have_count(0)


def proportion(image):
    box = image.bounding_box()
    return box["width"] / box["height"]


def test_everything_has_a_name_and_can_be_reached_with_tab(page):
    names = page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea, a[href], summary")].map(
            (e) => e.ariaLabel || e.labels?.[0]?.textContent.trim() || e.textContent.trim())"""
    )
    assert all(names)
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName"))
    assert {"SUMMARY", "TEXTAREA", "SELECT", "BUTTON"} <= reached
    with urllib.request.urlopen(page.url) as answer:
        assert b'lang="en"' in answer.read()


def upload(page, *size):
    file = base64.b64decode(png_url(*size).partition(",")[2])
    page.get_by_label("Upload an image").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": file})
    expect(page.get_by_role("img", name="the image that goes with the prompt")).to_be_visible()
