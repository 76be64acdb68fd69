import numpy as np
import pytest
from PIL import Image

from transfusion_jax.generation.png import GAP, SMALLEST, grid, to_pixels, write_png


def test_pixels_run_from_black_to_white():
    values = np.array([-5, -1, -0.5, 0, 0.5, 1, 5], np.float32).reshape(1, 1, 7, 1)
    pixels = to_pixels(values)
    assert (pixels.shape, pixels.dtype) == ((1, 1, 7, 3), np.uint8)
    for channel in range(3):
        assert pixels[0, 0, :, channel].tolist() == [0, 0, 64, 128, 191, 255, 255]


def test_colours_stay_apart():
    red = np.full((1, 2, 2, 3), -1.0)
    red[..., 0] = 1
    assert to_pixels(red)[0, 1, 1].tolist() == [255, 0, 0]


def test_images_stand_row_by_row_on_white():
    values = np.array([-1, 0, 1, -0.5, 0.5]).reshape(5, 1, 1, 1) * np.ones((1, 8, 8, 1))
    sheet = grid(values, columns=3)
    cell = SMALLEST + GAP
    assert (sheet.shape, sheet.dtype) == ((2 * cell + GAP, 3 * cell + GAP, 3), np.uint8)
    for i, expected in enumerate([0, 128, 255, 64, 191]):
        top, left = GAP + i // 3 * cell, GAP + i % 3 * cell
        image = sheet[top : top + SMALLEST, left : left + SMALLEST]
        assert set(image.ravel()) == {expected}
    assert set(sheet[GAP + cell :, GAP + 2 * cell :].ravel()) == {255}  # the place that stays empty
    assert set(sheet[:GAP].ravel()) == {255}


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert grid(np.zeros((1, 8, 8, 1)), 1).shape == (SMALLEST + 2 * GAP,) * 2 + (3,)
    assert grid(np.zeros((1, 100, 100, 3)), 1).shape == (100 + 2 * GAP,) * 2 + (3,)
    pixels = np.zeros((1, 2, 2, 1))
    pixels[0, 0, 1] = 1
    sheet = grid(pixels, 1)[GAP:-GAP, GAP:-GAP, 0]
    assert sheet[:32, 32:].min() == 255  # neighbours are repeated, not blended
    assert sheet[32:].max() == 128


def test_labels_stand_before_their_rows():
    images = np.ones((4, 8, 8, 1))
    plain, labelled = grid(images, 2), grid(images, 2, ["short", "a much longer label"])
    margin = labelled.shape[1] - plain.shape[1]
    assert margin > 0
    np.testing.assert_array_equal(labelled[:, margin:], plain)
    middle = labelled.shape[0] // 2
    ink = (labelled[:, :margin, 0] < 128).any(axis=1)
    assert ink[:middle].any()
    assert ink[middle:].any()
    widths = [
        np.flatnonzero((half[:, :margin, 0] < 128).any(axis=0)).max()
        for half in np.split(labelled[: 2 * middle], 2)
    ]
    assert widths[0] < widths[1] < margin - GAP


def test_images_of_several_shapes_are_enlarged_alike_and_rows_are_as_high_as_theirs():
    random = np.random.default_rng(0)
    shapes = [(8, 16), (16, 4), (8, 8), (4, 24), (2, 2)]
    images = [random.uniform(-1, 1, (*shape, 3)) for shape in shapes]
    sheet, scale = grid(images, 2), SMALLEST // 16  # of the tallest
    tops = [GAP, GAP + 16 * scale + GAP, GAP + 24 * scale + 2 * GAP]
    assert sheet.shape == (tops[2] + 2 * scale + GAP, GAP + 2 * (24 * scale + GAP), 3)
    seen = np.full(sheet.shape, 255)
    for i, image in enumerate(images):
        shown = to_pixels(image).repeat(scale, 0).repeat(scale, 1)
        top, left = tops[i // 2], GAP + i % 2 * (24 * scale + GAP)
        seen[top : top + len(shown), left : left + shown.shape[1]] = shown
    np.testing.assert_array_equal(sheet, seen)


def test_labels_stand_in_the_middle_of_rows_of_unlike_heights():
    images = [np.ones((height, 80, 1)) for height in (64, 256, 64)]
    ink = (grid(images, 1, ["one", "two", "six"])[:, : 2 * GAP + 20, 0] < 128).any(1)
    starts = np.flatnonzero(np.diff(ink.astype(int)) > 0)
    for middle in (GAP + 35, 2 * GAP + 64 + 131, 3 * GAP + 64 + 256 + 35):
        assert np.abs(starts - middle).min() < 10


@pytest.mark.parametrize("channels", [1, 3])
def test_a_written_image_holds_its_pixels(tmp_path, channels):
    image = np.random.default_rng(0).uniform(-1, 1, (1, 12, 20, channels))
    path = tmp_path / "a/b/image.png"
    write_png(path, to_pixels(image)[0])
    np.testing.assert_array_equal(np.asarray(Image.open(path)), to_pixels(image)[0])
