from collections import Counter

import numpy as np
import pytest

from transfusion_jax.worlds.shapes import edits, scenes
from transfusion_jax.worlds.shapes.scenes import GAP, SIZES

MANY = [scenes.scene(5, index) for index in range(400)]


def test_every_edit_changes_just_what_it_names():
    for scene in MANY:
        for edit in edits.possible_edits(scene):
            chosen = [thing for thing in scene.things if thing.is_a(edit.kind)]
            before, after = Counter(scene.things), Counter(edit.after.things)
            assert before - after == Counter(chosen)
            new = list((after - before).elements())
            assert len(new) == (0 if edit.action == "remove" else len(chosen))
            for old, thing in zip(chosen, new, strict=False):
                if edit.action == "recolour":
                    assert thing.colour == edit.value != old.colour
                    assert (thing.shape, thing.size, thing.x, thing.y) == (old.shape, old.size, old.x, old.y)
                else:
                    right, low = thing.x > 0.5, thing.y > 0.5
                    assert edit.value == f"{'bottom' if low else 'top'} {'right' if right else 'left'}"
            assert edit.after.background == scene.background
            assert edit.after.things


def test_things_stay_apart():
    for scene in MANY[:100]:
        for edit in edits.possible_edits(scene):
            things = edit.after.things
            for i, one in enumerate(things):
                for other in things[:i]:
                    distance = max(abs(one.x - other.x), abs(one.y - other.y))
                    assert distance >= SIZES[one.size] + SIZES[other.size] + GAP - 2e-4


def test_a_sentence_names_one_edit_of_a_scene():
    rng = np.random.default_rng(0)
    for scene in MANY[:100]:
        said = {}
        for edit in edits.possible_edits(scene):
            for _ in range(3):
                assert said.setdefault(edits.describe_edit(edit, scene, rng), edit) == edit


def test_actions_are_as_likely():
    rng = np.random.default_rng(0)
    found = Counter(edits.choose_edit(scene, rng).action for scene in MANY if len(scene.things) > 1)
    assert set(found) == set(edits.WORDINGS)
    assert min(found.values()) > 60


def test_corners_are_those_of_the_picture():
    scene = scenes.Scene("white", (scenes.Thing("ring", "red", "small", 0.8, 0.4),), 1.6, 0.8)
    moves = {edit.value: edit.after.things[0] for edit in edits.possible_edits(scene) if edit.action == "move"}
    assert {name: (thing.x, thing.y) for name, thing in moves.items()} == {
        "top left": (0.095, 0.095),
        "top right": (1.505, 0.095),
        "bottom left": (0.095, 0.705),
        "bottom right": (1.505, 0.705),
    }


def test_a_wide_picture_shows_the_scene_that_it_was_drawn_from():
    for scene in [scenes.scene(5, index, "free", 1.6, 0.8) for index in range(20)]:
        choices = [scene, *(edit.after for edit in edits.possible_edits(scene))]
        for number, choice in enumerate(choices):
            assert edits.shown(scenes.render(choice, 40), choices) == number


@pytest.mark.parametrize("size", [32, 64])
def test_a_picture_shows_the_scene_that_it_was_drawn_from(size):
    random = np.random.default_rng(0)
    for scene in MANY[:60]:
        choices = [scene, *(edit.after for edit in edits.possible_edits(scene))]
        for number, choice in enumerate(choices):
            noised = scenes.render(choice, size) + random.normal(0, 20, (size, size, 3))
            assert edits.shown(np.clip(noised, 0, 255).astype(np.uint8), choices) == number
