import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.readers.samples import encoded, noise
from transfusion_jax.data.readers.format import ReadOptions
from transfusion_jax.data.readers.pictures import PictureError, decode
from transfusion_jax.data.readers.proportions import LONGEST, Proportions
from transfusion_jax.errors import ConfigError

quickly = settings(max_examples=80, deadline=None, derandomize=True, database=None)
SIDES = st.integers(1, 120)
RULES = st.builds(
    lambda multiple, room, enlarge, longest: Proportions(multiple**2 + room, multiple, enlarge, 200.0, longest),
    multiple=st.integers(1, 12),
    room=st.integers(0, 900),
    enlarge=st.booleans(),
    longest=st.integers(12, 200),
)


def worth(size, width, height):
    """The square of: the share of the picture that is kept, times the square root of the pixels."""
    across, down = Fraction(size[0], width), Fraction(size[1], height)
    return (min(across, down) / max(across, down)) ** 2 * size[0] * size[1]


@pytest.mark.parametrize(
    ("proportions", "size"),
    [((1, 1), (40, 40)), ((2, 1), (64, 32)), ((1, 2), (32, 64)), ((3, 2), (48, 32)), ((8, 4), (64, 32))],
)
def test_an_exact_size_is_the_largest_of_its_proportions_and_stays_as_it_is(proportions, size):
    rules = Proportions(area=32 * 64, multiple=8)
    assert rules.exact(*proportions) == size
    assert rules.size(*size) == size


@pytest.mark.parametrize(
    ("proportions", "said"),
    [((7, 5), "exactly 7x5 .* 8 pixels has at most 2,048"), ((5, 1), "--max-aspect 4"), ((0, 0), "0x0 are none")],
)
def test_proportions_that_no_picture_has_are_refused(proportions, said):
    with pytest.raises(ConfigError, match=said):
        Proportions(area=32 * 64, multiple=8).exact(*proportions)


@quickly
@given(rules=RULES, width=SIDES, height=SIDES)
def test_the_size_is_the_best_of_all_pairs_of_multiples(rules, width, height):
    m = rules.multiple
    pairs = [
        (w, h)
        for w in range(m, rules.area // m + 1, m)
        for h in range(m, rules.area // w + 1, m)
        if max(w, h) <= rules.longest and (rules.enlarge or (w <= width and h <= height))
    ]
    if not pairs:
        with pytest.raises(PictureError, match=rf"too small: {width}×{height}, and --multiple is {m}"):
            rules.size(width, height)
        return
    found = rules.size(width, height)
    assert found in pairs
    assert float(worth(found, width, height) / max(worth(pair, width, height) for pair in pairs)) > 1 - 1e-12


@quickly
@given(rules=RULES, width=SIDES, height=SIDES)
def test_an_image_on_its_side_keeps_as_much(rules, width, height):
    assume(rules.enlarge or min(width, height) >= rules.multiple)
    one, other = rules.size(width, height), rules.size(height, width)[::-1]
    assert worth(one, width, height) == pytest.approx(worth(other, width, height))


@pytest.mark.parametrize(
    ("image", "size"),
    [
        ((256, 256), (256, 256)),
        ((4000, 4000), (256, 256)),
        ((288, 224), (288, 224)),
        ((2000, 1600), (288, 224)),  # the nearest proportions are those of 240×192
        ((64, 48), (64, 48)),
        ((70, 50), (64, 48)),  # never enlarged
        ((4096, 1024), (512, 128)),
        ((17, 33), (16, 32)),
    ],
)
def test_sizes_within_an_area(image, size):
    assert Proportions().size(*image) == size


def test_small_images_are_enlarged_if_asked():
    assert Proportions(enlarge=True).size(8, 8) == (256, 256)
    assert Proportions(enlarge=True).size(9, 18) == (176, 352)


@pytest.mark.parametrize("size", [(9, 36), (36, 9)])
def test_extreme_proportions_are_refused_above_the_limit(size):
    rules = Proportions(area=64, multiple=4, max_aspect=4)
    assert sorted(rules.size(*size)) == [4, 16]
    longer = tuple(side + (side == 36) for side in size)
    with pytest.raises(PictureError, match=r"extreme proportions: .*, and --max-aspect is 4$"):
        rules.size(*longer)
    assert Proportions(area=64, multiple=4, max_aspect=5).size(*longer)


def test_sides_fit_their_sixteen_bits():
    w, h = Proportions(1 << 28, 1, enlarge=True, max_aspect=1e9).size(1, 1 << 20)
    assert (w, h) == (1, LONGEST)


@pytest.mark.parametrize(
    ("size", "becomes"),
    [((300, 30), (64, 8)), ((30, 300), (8, 64)), ((64, 12), (48, 8)), ((60, 60), (56, 56))],
)
def test_no_side_is_above_the_longest(size, becomes):
    assert Proportions(area=4096, multiple=8, max_aspect=10, longest=64).size(*size) == becomes
    assert Proportions(area=4096, multiple=8, max_aspect=10, longest=64).size(*size[::-1]) == becomes[::-1]


@pytest.mark.parametrize(
    ("size", "becomes"),
    [((7, 7), (8, 8)), ((3, 3), (8, 8)), ((3, 6), (8, 16)), ((5, 50), (8, 80)), ((8, 9), (8, 8))],
)
def test_an_image_below_one_multiple_is_enlarged_as_far_as_that(size, becomes):
    rules = Proportions(area=4096, multiple=8, max_aspect=10, refuse_small=False)
    assert rules.size(*size) == becomes
    assert rules.size(80, 40) == Proportions(area=4096, multiple=8).size(80, 40)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(multiple=8, longest=7), "--multiple is 8, above a side's 7"),
        (dict(multiple=0), "--multiple must be positive"),
        (dict(area=255), "--area holds 255 pixels, and one --multiple squared has 256"),
        (dict(max_aspect=0.5), "--max-aspect must be at least 1"),
        (dict(max_aspect=float("nan")), "--max-aspect must be at least 1"),
    ],
)
def test_rules_that_no_image_fits_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Proportions(**values)


@quickly
@given(width=st.integers(4, 60), height=st.integers(4, 60), seed=st.integers(0, 9), enlarge=st.booleans())
def test_pixels_are_those_of_pillow_scaled_to_cover_and_cropped_in_the_middle(width, height, seed, enlarge):
    rules = Proportions(area=400, multiple=4, enlarge=enlarge, max_aspect=100)
    pixels = noise(height, width, 3, seed=seed)
    found = decode(encoded(Image.fromarray(pixels), "PNG"), rules, 3)
    w, h = rules.size(width, height)
    assert found.shape == (h, w, 3)
    scale = max(w / width, h / height)
    left, top = max(0, (width - w / scale) / 2), max(0, (height - h / scale) / 2)
    box = (left, top, width - left, height - top)
    expected = Image.fromarray(pixels).resize((w, h), Image.Resampling.LANCZOS, box)
    assert abs(found.astype(int) - np.asarray(expected)).max() <= 1


def test_what_has_the_right_size_is_left_as_it_is():
    pixels = noise(24, 40, 1)
    np.testing.assert_array_equal(decode(pixels, Proportions(area=1000, multiple=8), 1), pixels)


def test_cameras_orientation_turns_the_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = noise(16, 48, 3)
    found = decode(encoded(Image.fromarray(pixels), "PNG", exif=exif), Proportions(area=800, multiple=16), 3)
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))


@quickly
@given(area=st.integers(1, 5000), multiple=st.integers(1, 40))
def test_scenes_are_drawn_as_the_largest_square(area, multiple):
    assume(area >= multiple**2)
    side = ReadOptions(native=Proportions(area, multiple)).side
    assert side % multiple == 0
    assert side**2 <= area < (side + multiple) ** 2
    assert ReadOptions(image_size=40).side == 40


def test_the_largest_image_counts_for_what_a_document_may_hold():
    assert ReadOptions(image_size=40).area == 1600
    assert ReadOptions(native=Proportions(area=999)).area == 999
    assert math.isqrt(ReadOptions().area) == 256
