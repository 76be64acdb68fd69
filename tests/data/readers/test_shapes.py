import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import shapes
from transfusion_jax.data.readers.format import ReadOptions
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.data.readers.raw import InputShard, RawImage, RawText
from transfusion_jax.worlds.shapes import captions as claims
from transfusion_jax.worlds.shapes import scenes

OPTIONS = ReadOptions(image_size=32, shard_size=64)
NATIVE = Proportions(area=32 * 64, multiple=8)


def test_documents_are_a_caption_and_its_drawing_with_the_scene_kept():
    for document in documents("100:4"):
        caption, image = document.segments
        assert isinstance(caption, RawText)
        assert isinstance(image, RawImage)
        scene = scenes.from_graph(json.loads(json.dumps(document.meta)))
        assert scene == scenes.scene(4, int(document.key))
        assert claims.true_of(claims.parse_caption(caption.text), scene)
        np.testing.assert_array_equal(image.data, scenes.render(scene, 32))


@pytest.mark.parametrize(("path", "count"), [("", 20_000), ("1", 1), ("64", 64), ("65:9", 65), ("1000", 1000)])
def test_shards_cover_every_scene_once(path, count):
    parts = shapes.shards(path, OPTIONS)
    assert [place for part in parts for place in range(part.begin, part.end)] == list(range(count))
    assert all(part.end - part.begin <= 64 for part in parts)


def test_documents_do_not_depend_on_the_cut_into_shards():
    whole = documents("100", shard_size=1000)
    assert [text(d) for d in documents("100", shard_size=7)] == [text(d) for d in whole]
    (tail,) = shapes.read(InputShard("100", 99), OPTIONS)
    assert text(tail) == text(whole[99])
    assert [d.key for d in whole] == [str(index) for index in range(100)]


def test_seeds_differ_and_a_longer_set_begins_like_a_shorter_one():
    assert [text(d) for d in documents("200")][:50] == [text(d) for d in documents("50:0")]
    assert not {text(d) for d in documents("50:1") if len(text(d)) > 60} & {text(d) for d in documents("50:2")}


def test_captions_are_a_function_of_seed_and_index_alone():
    captions = [shapes.SceneSet().example(index)[1] for index in reversed(range(100))][::-1]
    assert captions == [text(d) for d in documents("100")]
    assert hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16] == "70978ec323e0bbf3"


def test_pictures_have_the_proportions_that_the_path_names():
    found = documents("300:4:corners:1x1+2x1+1x2", native=NATIVE)
    sizes = {"square": (40, 40), "wide": (32, 64), "tall": (64, 32)}
    seen = Counter(claims.form_of(scenes.from_graph(document.meta)) for document in found)
    assert set(seen) == set(sizes)
    assert min(seen.values()) > 70
    told = 0
    for document in found:
        scene = scenes.from_graph(json.loads(json.dumps(document.meta)))
        said = claims.parse_caption(text(document))
        assert claims.true_of(said, scene)
        told += any(isinstance(claim, claims.Proportion) for claim in said)
        pixels = document.segments[1].data
        assert pixels.shape[:2] == sizes[claims.form_of(scene)]
        np.testing.assert_array_equal(pixels, scenes.render(scene, 40))
        assert NATIVE.size(*pixels.shape[1::-1]) == pixels.shape[1::-1]  # preparing leaves it as it is
    assert told == pytest.approx(150, abs=35)
    assert [d.meta for d in documents("300:4:corners:1x1+2x1+1x2", 7, NATIVE)] == [d.meta for d in found]
    (one,) = {d.segments[1].data.shape for d in documents("20:4:free:3x2", native=NATIVE)}
    assert one == (32, 48, 3)


def test_squares_of_an_area_are_the_same_scenes_and_captions():
    """Without named proportions --aspect native draws squares, as it always did."""
    native, square = (documents("50:4", native=given) for given in (NATIVE, None))
    assert [d.meta for d in native] == [d.meta for d in square]
    assert [text(d) for d in native] == [text(d) for d in square]
    assert {d.segments[1].data.shape for d in native} == {(40, 40, 3)}


def test_pixels_and_scenes_of_squares_are_what_they_always_were():
    digest = hashlib.sha256()
    for document in documents("60:4") + documents("60:4:corners"):
        digest.update(document.segments[1].data.tobytes() + json.dumps(document.meta).encode())
    assert digest.hexdigest()[:16] == "9c34f6a7c52de0e2"


@pytest.mark.parametrize(
    ("path", "native", "said"),
    [
        ("10:0:free:2x1", None, "names proportions, and --aspect square has none"),
        ("10:0:free:7x5", NATIVE, "exactly 7x5"),
        ("10:0:free:9x1", NATIVE, "--max-aspect 4"),
        ("10:0:free:0x1", NATIVE, "0x1 are none"),
        ("10:0:corners:3x1", NATIVE, r"72×24 pixels, and scenes \(corners\) take sides of at least 28"),
        ("10:0:free:2x1", replace(NATIVE, enlarge=True), "leave out --enlarge"),
        ("10:0:2x1", NATIVE, "should be a number of scenes"),
        ("10:0:free:2x1+", NATIVE, "should be a number of scenes"),
    ],
)
def test_proportions_that_cannot_be_drawn_are_refused(path, native, said):
    with pytest.raises(ConfigError, match=said):
        shapes.shards(path, ReadOptions(image_size=32, native=native))


@pytest.mark.parametrize("path", ["0", "-5", "many", "10:", ":3", "10:x", "1e4", "10:1:2", "2 0", "10\n"])
def test_other_paths_are_refused(path):
    with pytest.raises(ConfigError, match="shapes:20000:7"):
        shapes.shards(path, OPTIONS)


def documents(path, shard_size=64, native=None):
    options = ReadOptions(image_size=32, shard_size=shard_size, native=native)
    return [document for part in shapes.shards(path, options) for document in shapes.read(part, options)]


def text(document):
    return document.segments[0].text
