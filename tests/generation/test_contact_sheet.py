import io

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion_jax.generation.contact_sheet import LEADING, LINES, contact_sheet, legible, shortened, wrapped
from transfusion_jax.generation.png import FONT, GAP, to_pixels

quickly = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SIDE = 16
SCALE = 9  # 16 pixels are enlarged to the 144 that a caption needs
CELL = SIDE * SCALE + GAP


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(-1, 1, (5, SIDE, SIDE, 3)).astype(np.float32)


def test_each_picture_is_whole_with_its_caption_under_it(images):
    plain = contact_sheet(images, [""] * 5, 3)
    lines = [1, 2, 1, 1, 1]
    texts = ["one", "two words that need another line", "three", "four", "five"]
    sheet = contact_sheet(images, texts, 3)
    assert sheet.shape[1] == plain.shape[1] == 3 * CELL + GAP
    assert sheet.shape[0] == plain.shape[0] + LEADING  # of the longest caption in the first row
    tops = [GAP, GAP + SIDE * SCALE + 3 * GAP + 2 * LEADING]
    for number, image in enumerate(to_pixels(images).repeat(SCALE, 1).repeat(SCALE, 2)):
        y, x = tops[number // 3], GAP + number % 3 * CELL
        np.testing.assert_array_equal(sheet[y : y + len(image), x : x + len(image)], image)
        under = sheet[y + len(image) : y + len(image) + GAP + LEADING * 2, x : x + CELL]
        dark = np.flatnonzero((under < 128).all((1, 2)) | (under.min((1, 2)) < 128))
        assert len(dark) > 5
        assert (dark.max() >= GAP + LEADING) == (lines[number] == 2)


def test_pictures_of_any_shapes_keep_them_above_their_captions():
    random = np.random.default_rng(1)
    shapes = [(16, 8), (8, 24), (12, 12), (4, 4)]
    pictures = [random.uniform(-1, 1, (*shape, 3)).astype(np.float32) for shape in shapes]
    sheet = contact_sheet(pictures, ["one", "two", "three", "four"], 3)
    scale = 144 // 24  # the widest has room for a caption, and all are enlarged as it is
    assert sheet.shape[1] == 3 * (144 + GAP) + GAP
    bottoms = [GAP + 16 * scale, GAP + 16 * scale + 3 * GAP + LEADING + 4 * scale]
    for number, picture in enumerate(pictures):
        image = to_pixels(picture[None])[0].repeat(scale, 0).repeat(scale, 1)
        bottom, x = bottoms[number // 3], GAP + number % 3 * (144 + GAP)
        np.testing.assert_array_equal(sheet[bottom - len(image) : bottom, x : x + image.shape[1]], image)
        under = sheet[bottom : bottom + GAP + LEADING, x : x + 144]
        assert (under < 128).any()


def test_a_white_picture_is_seen_on_white():
    sheet = contact_sheet([np.ones((SIDE, SIDE, 3))], ["white"], 1)
    side = SIDE * SCALE
    assert (sheet[GAP : GAP + side, GAP : GAP + side] == 255).all()
    for edge in (sheet[GAP - 1, GAP:-GAP], sheet[GAP + side, GAP:-GAP], sheet[GAP : GAP + side, GAP - 1]):
        assert (edge == 204).all()


def characters():
    """What the font's own table holds."""
    return TTFont(io.BytesIO(FONT.path.getvalue())).getBestCmap()


@quickly
@given(text=st.text(max_size=40))
def test_what_the_font_lacks_is_shown_as_its_escape(text):
    there, shown = characters(), legible(text)
    assert all(ord(c) in there for c in shown)
    expected = " ".join(text.split())
    assert shown == "".join(c if ord(c) in there else c.encode("unicode_escape").decode() for c in expected)


def test_other_scripts_can_be_told_apart():
    assert legible("Кот\nна  крыше") == r"\u041a\u043e\u0442 \u043d\u0430 \u043a\u0440\u044b\u0448\u0435"
    assert legible("a cat, 猫 😀") == r"a cat, \u732b \U0001f600"
    assert legible("") == ""


@quickly
@given(text=st.text("abcW .,", max_size=200), width=st.integers(20, 300))
def test_lines_are_as_wide_as_the_picture_and_lose_nothing(text, width):
    lines = list(wrapped(text, width))
    assert all(FONT.getlength(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_long_caption_ends_in_dots():
    lines = list(wrapped("word " * 100, 144))
    assert len(lines) > LINES
    short = shortened(lines)
    assert len(short) == LINES
    assert short[-1].endswith("…")
    assert FONT.getlength(short[-1]) <= 144
    assert shortened(["one"]) == ["one"]
