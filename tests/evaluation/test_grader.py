from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from transfusion_jax.evaluation.grader import UNKNOWN, look
from transfusion_jax.evaluation.suites.edits import SEED
from transfusion_jax.worlds.shapes import scenes
from transfusion_jax.worlds.shapes.scenes import Scene, Thing, render

SCENES = [scenes.scene(SEED, index) for index in range(400)]


@pytest.mark.parametrize(
    ("size", "blur", "noise", "least"),
    [(32, 0, 0, 0.995), (64, 0, 0, 0.995), (32, 0.7, 12, 0.98), (64, 0.7, 12, 0.995), (32, 0, 20, 0.98)],
)
def test_true_drawings_are_read_exactly(size, blur, noise, least):
    """Of every thing the shape, the colour, the size, and the place to half a pixel; blurred and noisy ones too."""
    rng = np.random.default_rng(0)
    right = 0
    for scene in SCENES:
        pixels = ndimage.gaussian_filter(render(scene, size).astype(float), (blur, blur, 0))
        pixels += noise * rng.standard_normal(pixels.shape)
        right += same(look(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), size), scene, 0.6 / size)
    assert right / len(SCENES) >= least


@pytest.mark.parametrize(("width", "height"), [(1.6, 0.8), (0.8, 1.6), (1.2, 0.8)])
def test_drawings_of_other_proportions_are_read_as_exactly(width, height):
    for arrangement in scenes.ARRANGEMENTS:
        many = [scenes.scene(SEED, index, arrangement, width, height) for index in range(100)]
        found = [look(render(scene, 40), 40) for scene in many]
        assert all((one.width, one.height) == (width, height) for one in found)
        assert sum(same(a, b, 0.6 / 40) for a, b in zip(found, many, strict=True)) >= 99


def test_other_drawings_are_read_as_something_else():
    for scene in SCENES[:60]:
        first, rest = scene.things[0], scene.things[1:]
        others = (
            replace(scene, things=rest),
            *(replace(scene, things=(changed, *rest)) for changed in changes(first)),
            *(replace(scene, background=b) for b in scenes.BACKGROUNDS if b != scene.background),
        )
        for other in others:
            found = look(render(other, 32), 32)
            assert same(found, other, 0.02)
            assert not same(found, scene, 0.02)


def test_things_that_touch_have_no_known_shape():
    pair = Scene("white", tuple(Thing("square", "red", "small", x, 0.5) for x in (0.4, 0.55)))
    assert [thing.shape for thing in look(render(pair, 64), 64).things] == [UNKNOWN]


def test_specks_are_no_things_and_an_empty_picture_is_a_background():
    pixels = np.full((32, 32, 3), 128, np.uint8)
    assert look(pixels, 32) == Scene("grey", ())
    pixels[3, 3] = pixels[20, 8:10] = (225, 30, 30)
    assert look(pixels, 32) == Scene("grey", ())


def test_noise_shows_nothing_that_is_known():
    rng = np.random.default_rng(0)
    shapes = Counter(
        t.shape for _ in range(20) for t in look(rng.integers(0, 256, (32, 32, 3), np.uint8), 32).things
    )
    assert shapes[UNKNOWN] > 0.9 * shapes.total()


def changes(thing):
    """The thing in every other shape, and in every other colour."""
    shapes = [replace(thing, shape=shape) for shape in scenes.SHAPES if shape != thing.shape]
    return shapes + [replace(thing, colour=colour) for colour in scenes.COLOURS if colour != thing.colour]


def same(found, scene, tolerance):
    """Whether two scenes hold the same kinds of things in the same places."""
    if found.background != scene.background or len(found.things) != len(scene.things):
        return False
    return all(
        any(
            (a.shape, a.colour, a.size) == (b.shape, b.colour, b.size)
            and max(abs(a.x - b.x), abs(a.y - b.y)) <= tolerance
            for a in found.things
        )
        for b in scene.things
    )
