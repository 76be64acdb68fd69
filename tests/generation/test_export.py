"""Files of what was made: images of any shapes keep their proportions."""

import json
import re

import numpy as np
import pytest
from PIL import Image as Pillow

from transfusion_jax.data.documents import Document
from transfusion_jax.generation.export import Sampled, write_album, write_page, write_sheet
from transfusion_jax.generation.interleaved import Request, Sample
from transfusion_jax.generation.png import GAP, grid, to_pixels

SHAPES = {"wide": (32, 128), "tall": (96, 48), "small": (4, 16)}


def sampled(prompt, *segments):
    return Sampled(prompt, Request(Document(()), "any"), Sample(segments, "images"))


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return {name: random.uniform(-1, 1, (*shape, 3)).astype(np.float32) for name, shape in SHAPES.items()}


def test_each_line_says_how_large_its_images_are(images, tmp_path):
    made = [sampled("a", "text", images["wide"], "more", images["tall"]), sampled("b", images["small"])]
    write_album(tmp_path, made, {})
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert lines[0]["segments"] == [
        "text",
        {"image": "0000-0.png", "width": 128, "height": 32},
        "more",
        {"image": "0000-1.png", "width": 48, "height": 96},
    ]
    assert lines[1]["segments"] == [{"image": "0001-0.png", "width": 16, "height": 4}]
    for name, image in zip(("0000-0", "0000-1", "0001-0"), images.values(), strict=True):
        np.testing.assert_array_equal(np.asarray(Pillow.open(tmp_path / f"{name}.png")), to_pixels(image))


def test_a_page_shows_images_in_proportion_and_small_ones_enlarged(images, tmp_path):
    write_page(tmp_path / "page.html", [sampled("a", *images.values())], {})
    page = (tmp_path / "page.html").read_text()
    sizes = [tuple(map(int, size)) for size in re.findall(r'<img width="(\d+)" height="(\d+)"', page)]
    assert sizes == [(128, 32), (48, 96), (64, 16)]
    assert "max-width: 100%; height: auto" in page  # so that a wide one fits a phone, in proportion


def test_a_sheet_has_a_row_for_each_prompt_whatever_the_shapes(images, tmp_path):
    wide, tall, small = images.values()
    made = [sampled("one", wide), sampled("one", tall), sampled("another", small)]
    write_sheet(tmp_path / "sheet.png", made, {})
    sheet = np.asarray(Pillow.open(tmp_path / "sheet.png"))
    np.testing.assert_array_equal(sheet, grid([wide, tall, small], 2, ["one", "another"]))
    margin = sheet.shape[1] - 2 * (128 + GAP) - GAP
    np.testing.assert_array_equal(sheet[GAP:][:32, margin + GAP :][:, :128], to_pixels(wide))
    second = sheet[GAP + 96 + GAP :][:4, margin + GAP :]
    np.testing.assert_array_equal(second[:, :16], to_pixels(small))
    assert (second[:, 16:] == 255).all()  # there is no second image of this prompt
