import hashlib
import json

import numpy as np
import pytest

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import shapes
from transfusion_jax.data.readers.format import ReadOptions
from transfusion_jax.data.readers.raw import InputShard, RawImage, RawText
from transfusion_jax.worlds.shapes import captions as claims
from transfusion_jax.worlds.shapes import scenes

OPTIONS = ReadOptions(image_size=32, shard_size=64)


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
    captions = [shapes.example(0, index)[1] for index in reversed(range(100))][::-1]
    assert captions == [text(d) for d in documents("100")]
    assert hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16] == "70978ec323e0bbf3"


@pytest.mark.parametrize("path", ["0", "-5", "many", "10:", ":3", "10:x", "1e4", "10:1:2", "2 0", "10\n"])
def test_other_paths_are_refused(path):
    with pytest.raises(ConfigError, match="shapes:20000:7"):
        shapes.shards(path, OPTIONS)


def documents(path, shard_size=64):
    options = ReadOptions(image_size=32, shard_size=shard_size)
    return [document for part in shapes.shards(path, options) for document in shapes.read(part, options)]


def text(document):
    return document.segments[0].text
