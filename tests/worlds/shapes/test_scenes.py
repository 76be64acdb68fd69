import hashlib
import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from scipy import ndimage

from transfusion_jax.worlds.shapes import scenes
from transfusion_jax.worlds.shapes.scenes import BACKGROUNDS, COLOURS, GAP, MARGIN, SHAPES, SIZES, Kind

MANY = [scenes.scene(3, index) for index in range(3000)]
FILLED = {"square": 1, "circle": 0.785, "cross": 0.578, "triangle": 0.5, "ring": 0.589, "star": 0.42}  # of the box


@pytest.mark.parametrize("size", [48, 64, 128])
def test_pixels_show_every_thing_in_its_place_and_nothing_else(size):
    for scene in MANY[:300]:
        found = seen(scenes.render(scene, size), BACKGROUNDS[scene.background])
        assert Counter(colour for colour, *_ in found) == Counter(thing.colour for thing in scene.things)
        for thing in scene.things:
            expected = np.array([thing.x, thing.y, SIZES[thing.size]]) * size
            near = [np.abs(np.array(box) - expected).max() for colour, *box, _ in found if colour == thing.colour]
            assert min(near) < 1.2  # pixels


def test_shapes_fill_their_boxes_as_geometry_says():
    for scene in MANY[:100]:
        found = seen(scenes.render(scene, 256), BACKGROUNDS[scene.background])
        for thing in scene.things:
            distances = [np.hypot(x / 256 - thing.x, y / 256 - thing.y) for _, x, y, _, _ in found]
            mask = found[int(np.argmin(distances))][-1]
            assert mask.mean() == pytest.approx(FILLED[thing.shape], abs=0.08)
            hole = not mask[len(mask) // 2, mask.shape[1] // 2]
            assert hole == (thing.shape == "ring")


@pytest.mark.parametrize("size", [48, 64, 100])
def test_a_picture_has_the_size_asked_for_and_smooth_edges(size):
    for scene in MANY[:50]:
        pixels = scenes.render(scene, size)
        assert pixels.shape == (size, size, 3)
        assert pixels.dtype == np.uint8
        plain = {BACKGROUNDS[scene.background], *(COLOURS[thing.colour] for thing in scene.things)}
        assert plain < {tuple(map(int, pixel)) for pixel in pixels.reshape(-1, 3)}


def test_things_keep_apart_and_off_the_edge():
    for scene in MANY:
        boxes = [(np.array([thing.x, thing.y]), SIZES[thing.size]) for thing in scene.things]
        for number, (place, half) in enumerate(boxes):
            assert place.min() - half >= MARGIN - 1e-4
            assert place.max() + half <= 1 - MARGIN + 1e-4
            for other, other_half in boxes[:number]:
                assert np.abs(place - other).max() >= half + other_half + GAP - 1e-9


def test_every_attribute_is_as_common_as_the_others():
    things = [thing for scene in MANY for thing in scene.things]
    for attribute, values, tolerance in (("shape", SHAPES, 0.1), ("colour", COLOURS, 0.12), ("size", SIZES, 0.2)):
        counts = Counter(getattr(thing, attribute) for thing in things)
        assert set(counts) == set(values)
        for value in values:  # fewer large ones: five have no room
            assert counts[value] * len(values) / len(things) == pytest.approx(1, abs=tolerance)
    grounds = Counter(scene.background for scene in MANY)
    assert grounds["white"] / len(MANY) == pytest.approx(0.5, abs=0.05)
    assert set(grounds) == set(BACKGROUNDS)
    assert {len(scene.things) for scene in MANY} == {1, 2, 3, 4, 5}


def test_sizes_say_nothing_of_the_number_up_to_four():
    for count in (1, 2, 3, 4):
        sizes = Counter(thing.size for scene in MANY if len(scene.things) == count for thing in scene.things)
        assert sizes["large"] / sizes.total() == pytest.approx(0.5, abs=0.08)


def test_a_scene_is_a_function_of_seed_and_index_alone():
    assert [scenes.scene(3, index) for index in reversed(range(200))] == MANY[:200][::-1]
    assert len({scenes.scene(seed, index) for seed in range(5) for index in range(200)}) == 1000


def test_in_the_corners_things_are_large_and_each_has_one_of_its_own():
    counts = set()
    for index in range(500):
        things = scenes.scene(3, index, scenes.CORNERED).things
        places = {(thing.x < 0.5, thing.y < 0.5) for thing in things}
        assert len(places) == len(things)
        assert {thing.size for thing in things} == {"large"}
        assert all(abs(abs(at - 0.5) - 0.33) < 1e-6 for thing in things for at in (thing.x, thing.y))
        counts.add(len(things))
    assert counts == {1, 2, 3, 4}
    graphs = json.dumps([asdict(scene) for scene in MANY[:100]])
    assert hashlib.sha256(graphs.encode()).hexdigest()[:16] == "8bcb4d2e8ddb4d41"


def test_a_scene_survives_json():
    for scene in MANY[:100]:
        assert scenes.from_graph(json.loads(json.dumps(asdict(scene)))) == scene


def test_a_thing_is_of_the_kinds_that_fit_it():
    thing = scenes.Thing("ring", "red", "small", 0.5, 0.5)
    assert all(map(thing.is_a, (Kind(), Kind("ring"), Kind(None, "red"), Kind("ring", "red", "small"))))
    assert not any(map(thing.is_a, (Kind("circle"), Kind("ring", "blue"), Kind("ring", "red", "large"))))


def seen(pixels, ground):
    """The parts of a picture that are not background: colour, centre of the box, half its side, mask in the box."""
    apart = np.abs(pixels.astype(int) - ground).sum(-1)
    labels, _ = ndimage.label(apart > 0, np.ones((3, 3)))
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[rows, columns] == number
        purest = pixels[rows, columns][mask][apart[rows, columns][mask].argmax()].astype(int)
        colour = min(COLOURS, key=lambda name: np.abs(purest - COLOURS[name]).sum())
        x, y = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
        found.append((colour, x, y, (columns.stop - columns.start) / 2, mask))
    return found
