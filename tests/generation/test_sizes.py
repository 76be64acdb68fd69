"""Sizes in pixels and patches. The models' patches are 2×2 latents, and a latent stands for 1, 2 or 8 pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from data.readers.samples import encoded, noise
from helpers import special, tiny_config, token_config
from transfusion_jax.autoencoder.kinds import dct, grey
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import ConfigError
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.readers.pictures import PictureError, decode
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.data.store.latent_stats import LatentStatistics
from transfusion_jax.data.tokenizer import ByteTokenizer
from transfusion_jax.generation.sizes import (
    grid_of_aspect,
    grid_of_size,
    parse_aspect,
    parse_size,
    pixels_of_file,
    pixels_of_grid,
    untrained_shape,
)

quickly = settings(max_examples=80, deadline=None, derandomize=True, database=None)
ONE_SIZE = tiny_config(model__latent_shape=(8, 12, 3))
SEVERAL = tiny_config(model__latent_shape=(8, 12, 3), model__max_side=16)
CODES = token_config(model__latent_shape=(4, 6, 1), model__max_side=8)
TEXT_ALONE = token_config("none")


def codec(autoencoder=None, channels=3):
    statistics = LatentStatistics(np.zeros(channels), np.ones(channels))
    return Codec(ByteTokenizer(), special(), autoencoder or Identity(), statistics)


DCT = codec(dct.from_name("dct-f8c3"))
GREY = Codec(ByteTokenizer(), special(), grey.from_name("grey-f8k11"), None)


def test_what_a_person_asks_for_is_read():
    assert parse_size("320x192") == (320, 192)
    assert parse_aspect("16:9") == (16, 9)


@pytest.mark.parametrize("text", ["", "320", "320x", "x192", "320×192", "0x8", "-1x8", "3 x 2", "1e2x8", "8x8x8"])
def test_no_size_is_refused(text):
    with pytest.raises(ConfigError, match=r"a size is WIDTHxHEIGHT in pixels, such as 320x192, not "):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "16", "16:", ":9", "16/9", "1.5:1", "0:1", "-16:9", "1:2:3"])
def test_no_aspect_is_refused(text):
    with pytest.raises(ConfigError, match=r"an aspect is WIDTH:HEIGHT in whole numbers, such as 16:9, not "):
        parse_aspect(text)


@pytest.mark.parametrize(
    ("config", "codec", "pixels"),
    [
        (SEVERAL, codec(), (16, 6)),
        (SEVERAL, DCT, (128, 48)),
        (CODES, GREY, (64, 24)),
        (ONE_SIZE, codec(), (12, 8)),
        (ONE_SIZE, DCT, (96, 64)),
    ],
)
def test_a_size_is_a_grid_of_patches_and_back(config, codec, pixels):
    grid = grid_of_size(*pixels, config, codec)
    assert grid == ((4, 6) if config is ONE_SIZE else (3, 8))
    assert pixels_of_grid(grid, config, codec) == pixels[::-1]


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((100, 70), "96x64, 96x80, 112x64"),  # no multiples
        ((256, 16), "128x16, 112x16, 128x32"),  # too wide
        ((128, 128), "96x64, 96x96"),  # too large
        ((1, 1), "16x16, 16x32, 32x16"),
    ],
)
def test_a_size_that_is_not_drawn_is_refused_with_the_nearest_that_are(size, nearest):
    with pytest.raises(ConfigError) as error:
        grid_of_size(*size, SEVERAL, DCT)
    said = str(error.value)
    assert said.startswith(
        f"this model draws no images of {size[0]}x{size[1]} pixels: sides are multiples of 16, at most 128, and an "
        "image has at most 6,144 pixels; nearest: "
    )
    named = [parse_size(word) for word in said.partition("nearest: ")[2].split(", ")]
    assert len(named) == 3
    for found in named:
        grid_of_size(*found, SEVERAL, DCT)


def test_a_model_of_one_size_draws_that_alone():
    sentence = r"this model draws images of 96x64 pixels alone, not of {}: ask for that, or leave it out"
    with pytest.raises(ConfigError, match=sentence.format("64x96")):
        grid_of_size(64, 96, ONE_SIZE, DCT)
    assert grid_of_aspect(6, 4, ONE_SIZE, DCT) == (4, 6)
    with pytest.raises(ConfigError, match=sentence.format("16:9")):
        grid_of_aspect(16, 9, ONE_SIZE, DCT)


def test_a_model_of_text_alone_draws_nothing():
    for ask in (grid_of_size, grid_of_aspect):
        with pytest.raises(ConfigError, match="this is a model of text alone: it draws no images"):
            ask(8, 8, TEXT_ALONE, codec())


@pytest.mark.parametrize(
    ("aspect", "pixels"),
    [("1:1", (256, 256)), ("16:9", (192, 336)), ("9:16", (336, 192)), ("2:1", (176, 352)), ("4:1", (128, 512))],
)
def test_an_aspect_has_the_models_area(aspect, pixels):
    config = tiny_config(model__latent_shape=(32, 32, 3), model__max_side=64, data__context_length=300)
    grid = grid_of_aspect(*parse_aspect(aspect), config, DCT)
    assert pixels_of_grid(grid, config, DCT) == pixels


@quickly
@given(width=st.integers(1, 50), height=st.integers(1, 50), config=st.sampled_from([SEVERAL, CODES]))
def test_an_aspect_is_drawn_within_the_models_bounds_or_refused(width, height, config):
    long = max(width, height) / min(width, height)
    if long > 8:
        with pytest.raises(ConfigError, match=rf"{width}:{height}: the longer side is at most 8 times"):
            grid_of_aspect(width, height, config, GREY)
        return
    rows, columns = grid_of_aspect(width, height, config, GREY)
    k = config.model.patch_size
    assert config.model.grid(rows * k, columns * k) == (rows, columns)
    turned = {grid_of_aspect(height, width, config, GREY), (columns, rows)}
    assert len(turned) == 1 or width == height


@quickly
@given(grid=st.tuples(st.integers(1, 10), st.integers(1, 10)))
def test_shapes_outside_what_was_trained_on_are_warned_of(grid):
    trained = {"height": [4, 8], "width": [6, 16], "area": [30, 96]}
    height, width = (2 * side for side in grid)
    inside = 4 <= height <= 8 and 6 <= width <= 16 and 30 <= height * width <= 96
    found = untrained_shape(grid, SEVERAL, DCT, trained)
    assert (found is None) == inside
    assert found is None or found == (
        f"this run was trained on no images of {8 * width}x{8 * height} pixels: theirs are 48 to 128 wide, 32 to "
        "64 high, and 1,920 to 6,144 in area"
    )
    assert untrained_shape(grid, SEVERAL, DCT, None) is None


def test_a_side_that_all_have_is_one_number():
    trained = {"height": [8, 8], "width": [8, 16], "area": [64, 128]}
    found = untrained_shape((2, 4), SEVERAL, codec(), trained)
    assert found.endswith("pixels: theirs are 8 to 16 wide, 8 high, and 64 to 128 in area")


@quickly
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_a_file_keeps_its_proportions_as_prepare_does(width, height):
    pixels = noise(height, width, 3)
    found = pixels_of_file(encoded(Pillow.fromarray(pixels), "PNG"), SEVERAL, DCT)
    assert SEVERAL.model.grid(found.shape[0] // 8, found.shape[1] // 8)
    if max(width, height) <= 4 * min(width, height) and min(width, height) >= 16:
        rules = Proportions(area=6144, multiple=16, longest=128)
        np.testing.assert_array_equal(found, decode(pixels, rules, 3).astype(np.float32) / 127.5 - 1)
    if min(width, height) >= 16:
        assert found.shape[0] <= height
        assert found.shape[1] <= width


@pytest.mark.parametrize(
    ("sides", "shape"),
    [
        ((16, 12), (8, 12)),  # width and height of the file, height and width of what it becomes
        ((160, 90), (8, 12)),
        ((12, 16), (12, 8)),
        ((300, 30), (2, 16)),  # its proportion is beyond the longest side: cropped
        ((6, 6), (6, 6)),  # never enlarged
        ((1, 1), (2, 2)),  # unless it is below a patch
        ((1, 9), (16, 2)),
        ((1, 3000), (16, 2)),
    ],
)
def test_a_file_becomes_what_the_model_sees(sides, shape):
    found = pixels_of_file(encoded(Pillow.new("RGB", sides), "PNG"), SEVERAL, codec())
    assert found.shape == (*shape, 3)


def test_a_file_of_the_right_size_is_left_as_it_is():
    pixels = noise(6, 16, 1)
    config = tiny_config(model__latent_shape=(8, 12, 1), model__max_side=16)
    found = pixels_of_file(encoded(Pillow.fromarray(pixels[..., 0]), "PNG"), config, codec())
    np.testing.assert_array_equal(found, pixels.astype(np.float32) / 127.5 - 1)


def test_a_model_of_one_size_sees_the_middle_in_its_own_proportions():
    stripes = np.zeros((8, 24, 3), np.uint8)
    stripes[:, 6:18] = 255
    assert (
        pixels_of_file(encoded(Pillow.fromarray(stripes), "PNG"), ONE_SIZE, codec()) == np.ones((8, 12, 3))
    ).all()
    assert pixels_of_file(encoded(Pillow.new("RGB", (3, 2)), "PNG"), ONE_SIZE, DCT).shape == (64, 96, 3)


def test_a_model_of_codes_sees_files_of_any_shape():
    codes = GREY.latents(pixels_of_file(encoded(Pillow.new("L", (200, 60), 255), "PNG"), CODES, GREY)[None])[0]
    assert codes.shape == (3, 8)
    assert (codes == 10).all()
    assert CODES.model.grid(*codes.shape) == (3, 8)


def test_no_picture_is_refused():
    with pytest.raises(PictureError, match="not an image"):
        pixels_of_file(b"no picture", SEVERAL, codec())
