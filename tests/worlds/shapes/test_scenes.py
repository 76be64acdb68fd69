import hashlib
import json
from collections import Counter

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
    graphs = json.dumps([scenes.to_graph(scene) for scene in MANY[:100]])
    assert hashlib.sha256(graphs.encode()).hexdigest()[:16] == "8bcb4d2e8ddb4d41"


@pytest.mark.parametrize("arrangement", scenes.ARRANGEMENTS)
@pytest.mark.parametrize(("width", "height"), [(1.6, 0.8), (0.8, 1.6), (1.2, 0.8), (0.7, 0.7)])
def test_things_have_one_size_in_pictures_of_every_proportion_and_use_all_of_them(width, height, arrangement):
    many = [scenes.scene(3, index, arrangement, width, height) for index in range(300)]
    for scene in many:
        boxes = [(np.array([thing.x, thing.y]), SIZES[thing.size]) for thing in scene.things]
        for number, (place, half) in enumerate(boxes):
            assert (place - half >= MARGIN - 1e-4).all()
            assert (place + half <= np.array([width, height]) - MARGIN + 1e-4).all()
            for other, other_half in boxes[:number]:
                assert np.abs(place - other).max() >= half + other_half + GAP - 1e-4
    for scene in many[:40]:
        pixels = scenes.render(scene, 50)
        assert pixels.shape == (50 * height, 50 * width, 3)
        halves = sorted(half for _, _, _, half, _ in seen(pixels, BACKGROUNDS[scene.background]))
        np.testing.assert_allclose(halves, sorted(SIZES[t.size] * 50 for t in scene.things), atol=1.2)
    centres = np.array([(thing.x, thing.y) for scene in many for thing in scene.things])
    corners = centres.min(0), np.array([width, height]) - centres.max(0)
    np.testing.assert_allclose(corners, MARGIN + (0.075 if arrangement == scenes.FREE else 0.15), atol=0.02)


def test_a_scene_is_the_same_in_every_proportion_but_for_its_places():
    for index in range(100):
        square, wide = (scenes.scene(3, index, scenes.CORNERED, *sides) for sides in ((1, 1), (1.6, 0.8)))
        assert (wide.width, wide.height, wide.background) == (1.6, 0.8, square.background)
        for thing, other in zip(square.things, wide.things, strict=True):
            assert other.is_a(Kind(thing.shape, thing.colour, thing.size))
            assert ((thing.x < 0.5), (thing.y < 0.5)) == ((other.x < 0.8), (other.y < 0.4))


def test_the_least_sides_have_room_for_what_may_stand_there():
    for arrangement in scenes.ARRANGEMENTS:
        least = scenes.least_side(arrangement)
        for index in range(100):
            things = scenes.scene(3, index, arrangement, 2.0, least).things
            for number, thing in enumerate(things):
                assert thing.y + SIZES[thing.size] <= least - MARGIN + 1e-4
                assert all(
                    max(abs(thing.x - t.x), abs(thing.y - t.y)) >= SIZES[thing.size] + SIZES[t.size] + GAP - 1e-4
                    for t in things[:number]
                )


def test_a_scene_survives_json():
    assert "width" not in scenes.to_graph(MANY[0])
    for scene in [*MANY[:100], scenes.scene(3, 0, width=1.6, height=0.8)]:
        assert scenes.from_graph(json.loads(json.dumps(scenes.to_graph(scene)))) == scene


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
