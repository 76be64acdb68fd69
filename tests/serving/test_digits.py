"""The page on the digits model of the README, which `make demo` trains; draws the README's screenshot."""

import base64
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from transfusion_jax.data.readers import digits
from transfusion_jax.evaluation.suites.digits import captioned_digits, digit_features, fit_judge
from transfusion_jax.training.facts import data_of
from transfusion_jax.training.run_dir import Workdir

CHROMIUM = "/usr/bin/chromium"
WORDS = digits.NAMES  # "zero" to "nine"

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def workdir():
    return os.environ.get("TRANSFUSION_RUN", "runs/digits")


@pytest.fixture(scope="module")
def page(workdir):
    serve = [sys.executable, "-m", "transfusion_jax.cli", "serve", "--workdir", workdir, "--port", "0"]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    with (
        subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=environment) as process,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            url = next(line for line in process.stdout if line.startswith("serving at")).split()[-1]
            page = browser.new_page(viewport={"width": 760, "height": 820})
            page.set_default_timeout(120_000)
            expect.set_options(timeout=120_000)
            page.goto(url)
            yield page
        finally:
            browser.close()
            process.terminate()


def test_a_prompt_is_answered_with_the_right_digit(page, workdir):
    run = Workdir(Path(workdir))
    config = run.config()
    data = data_of(run, config)
    judge = fit_judge(captioned_digits(data.train, data.codec))
    drawn = []
    for word in WORDS:
        page.get_by_label("Prompt").fill(f"a handwritten {word}")
        page.keyboard.press("Enter")
        expect(page.get_by_role("img", name="a drawn image")).to_have_count(len(drawn) + 1)
        drawn.append(pixels(page.get_by_role("img", name="a drawn image").last.get_attribute("src")))
    found = judge.predict(digit_features(np.stack(drawn)))
    assert found[3] == 3
    assert np.sum(found == np.arange(10)) >= 9


def test_what_was_drawn_is_captioned(page):
    page.get_by_text("Settings").click()
    page.get_by_role("button", name="New conversation").click()
    page.get_by_text("Settings").click()
    page.get_by_label("Prompt").fill("a handwritten three")
    page.keyboard.press("Enter")
    expect(page.get_by_role("img", name="a drawn image")).to_be_visible()
    page.get_by_role("button", name="Use").click()
    page.get_by_label("What is made").select_option("text")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("listitem")).to_have_count(4)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    assert "three" in page.get_by_role("listitem").last.text_content()
    if picture := os.environ.get("SCREENSHOT"):
        page.screenshot(path=picture)


def pixels(url):
    file = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(file)).convert("L"), np.float32)[..., None] / 127.5 - 1
