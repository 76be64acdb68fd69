from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from transfusion_jax.worlds.shapes import captions as claims
from transfusion_jax.worlds.shapes import scenes
from transfusion_jax.worlds.shapes.captions import (
    Background,
    Count,
    Proportion,
    Relation,
    holds,
    parse_caption,
    true_of,
)
from transfusion_jax.worlds.shapes.scenes import COLOURS, Kind, Scene, Thing

SCENES = [scenes.scene(5, index) for index in range(3000)]
CLAIMS = [claims.claims(scene, np.random.default_rng(index)) for index, scene in enumerate(SCENES)]
CAPTIONS = [claims.describe_claims(said, np.random.default_rng(index)) for index, said in enumerate(CLAIMS)]
RED = Kind("circle", "red")
BLUE = Kind("square", "blue")


def test_every_claim_holds_in_its_scene():
    assert all(true_of(said, scene) for said, scene in zip(CLAIMS, SCENES, strict=True))


def test_captions_read_back_as_the_claims_they_were_made_of():
    assert [parse_caption(caption) for caption in CAPTIONS] == CLAIMS


@pytest.mark.parametrize("form", [None, *claims.FORMS])
def test_every_wording_reads_back(form):
    for (count, relation), ground in [(key, ground) for key in claims.WORDINGS for ground in scenes.BACKGROUNDS]:
        kinds = (RED, Kind("cross", "orange", "small"), Kind("star", "pink", "large"))[:count]
        counts = [Count(number + 1, kind) for number, kind in enumerate(kinds)]
        said = (*counts, Count(count * (count + 1) // 2, Kind()), Background(ground))
        said += (Proportion(form),) if form else ()
        said += (Relation(kinds[0], relation, kinds[1]),) if relation else ()
        captions = {claims.describe_claims(said, np.random.default_rng(seed)) for seed in range(100)}
        assert len(captions) >= (8 if form else 11)
        assert {parse_caption(caption) for caption in captions} == {said}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("three purple triangles", (Count(3, Kind("triangle", "purple")), Count(3, Kind()), Background("white"))),
        (
            "a picture of an orange ring with two little red crosses to the left on a black background",
            (
                Count(2, Kind("cross", "red", "small")),
                Count(1, Kind("ring", "orange")),
                Count(3, Kind()),
                Background("black"),
                Relation(Kind("cross", "red", "small"), "left", Kind("ring", "orange")),
            ),
        ),
        (
            "one big blue square, a red circle and two pink stars against a grey background",
            (
                Count(1, Kind("square", "blue", "large")),
                Count(1, RED),
                Count(2, Kind("star", "pink")),
                Count(4, Kind()),
                Background("grey"),
            ),
        ),
        (
            "a wide picture of a blue square on a black background",
            (Count(1, BLUE), Count(1, Kind()), Background("black"), Proportion("wide")),
        ),
        (
            "a square drawing of one blue square",
            (Count(1, BLUE), Count(1, Kind()), Background("white"), Proportion("square")),
        ),
    ],
)
def test_a_caption_means_what_it_says(caption, expected):
    assert parse_caption(caption) == expected


@pytest.mark.parametrize(
    "caption",
    [
        *(
            "",
            "a",
            "red circle",
            "a red circles",
            "two red circle",
            "a orange ring",
            "an red circle",
            "six red circles",
        ),
        *(
            "a red circle.",
            "a red circle a blue square",
            "a red circle on a red background",
            "a big small red circle",
        ),
        *(
            "a red circle near a blue square",
            "a tiny red circle",
            "A red circle",
            "a red circle and a blue square and",
        ),
        *("a wide red circle", "a broad picture of a red circle", "a wide picture of a tall picture of a ring"),
        *("a red circle above", "a drawing of a picture of a red circle", "a {} red circle", "{}", "{} above {}"),
    ],
)
def test_other_texts_mean_nothing(caption):
    assert parse_caption(caption) is None


def test_a_caption_is_false_of_a_scene_with_any_one_thing_changed():
    rng = np.random.default_rng(0)
    for said, scene in zip(CLAIMS[:500], SCENES, strict=False):
        place = int(rng.integers(len(scene.things)))
        thing, rest = scene.things[place], scene.things[:place] + scene.things[place + 1 :]
        colour = next(colour for colour in COLOURS if colour != thing.colour)
        shape = next(shape for shape in scenes.SHAPES if shape != thing.shape)
        ground = next(ground for ground in scenes.BACKGROUNDS if ground != scene.background)
        for changed in (
            replace(scene, things=rest),
            replace(scene, things=(*scene.things, thing)),
            replace(scene, things=(*rest, replace(thing, colour=colour))),
            replace(scene, things=(*rest, replace(thing, shape=shape))),
            replace(scene, background=ground),
        ):
            assert not true_of(said, changed)


def test_a_claim_of_sizes_is_false_where_sizes_differ():
    other = {"small": "large", "large": "small"}
    sized = [pair for pair in zip(CLAIMS, SCENES, strict=True) if pair[0][0].kind.size]
    assert len(sized) > 1000
    for said, scene in sized:
        things = tuple(replace(thing, size=other[thing.size]) for thing in scene.things[:1]) + scene.things[1:]
        assert not true_of(said, replace(scene, things=things))


def test_a_relation_is_false_in_the_mirror():
    related = [pair for pair in zip(CLAIMS, SCENES, strict=True) if isinstance(pair[0][-1], Relation)]
    assert len(related) > 500
    for said, scene in related:
        mirror = tuple(replace(thing, x=1 - thing.x, y=1 - thing.y) for thing in scene.things)
        assert not true_of(said, replace(scene, things=mirror))
        assert true_of(said[:-1], replace(scene, things=mirror))


def test_a_relation_binds_every_thing_of_its_kinds_and_needs_some():
    high, middle, low = (Thing("circle", "red", "small", 0.5, y) for y in (0.2, 0.5, 0.8))
    square = Thing("square", "blue", "large", 0.5, 0.6)
    above = Relation(RED, "above", BLUE)
    assert holds(above, Scene("white", (high, middle, square)))
    assert not holds(above, Scene("white", (high, low, square)))
    assert not holds(above, Scene("white", (square,)))
    assert not holds(above, Scene("white", (high,)))
    assert holds(Relation(BLUE, "below", RED), Scene("white", (high, square)))
    assert not holds(Relation(RED, "left", BLUE), Scene("white", (high, square)))


def test_half_of_the_captions_tell_the_pictures_form_where_forms_are_told():
    told = Counter()
    for index in range(600):
        sides = ((1.0, 1.0), (1.6, 0.8), (0.8, 1.6))[index % 3]
        scene = scenes.scene(5, index, "free", *sides)
        said = claims.claims(scene, np.random.default_rng(index), forms=True)
        caption = claims.describe_claims(said, np.random.default_rng(index))
        assert parse_caption(caption) == said
        assert true_of(said, scene)
        forms = [claim.form for claim in said if isinstance(claim, Proportion)]
        assert forms in ([], [["square", "wide", "tall"][index % 3]])
        told.update(forms)
        for form in forms:
            other = replace(scene, width=scene.height + (form != "wide"), height=scene.width)
            assert not true_of(said, other)
    assert min(told.values()) > 80
    assert told.total() == pytest.approx(300, abs=50)


def test_captions_are_varied_and_relations_are_common():
    assert len(set(CAPTIONS)) > 0.95 * len(CAPTIONS)
    assert max(map(len, CAPTIONS)) < 130
    related = Counter(said[-1].relation for said in CLAIMS if isinstance(said[-1], Relation))
    assert set(related) == set(claims.RELATIONS)
    assert related.total() / len(CLAIMS) == pytest.approx(0.32, abs=0.04)
    assert max(related.values()) < 1.3 * min(related.values())
    numbers = Counter(said[0].count for said in CLAIMS)
    assert set(numbers) == {1, 2, 3, 4, 5}
