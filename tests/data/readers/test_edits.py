import hashlib
import json

import numpy as np
import pytest

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import edits as reader
from transfusion_jax.data.readers import shapes
from transfusion_jax.data.readers.format import ReadOptions
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.data.readers.raw import RawImage, RawText
from transfusion_jax.worlds.shapes import edits, scenes

OPTIONS = ReadOptions(image_size=32, shard_size=64)


def test_documents_are_stories_and_requests_by_turns():
    for document in documents("40:4"):
        meta = json.loads(json.dumps(document.meta))
        before, after = scenes.from_graph(meta["before"]), scenes.from_graph(meta["edit"]["after"])
        images = [s for s in document.segments if isinstance(s, RawImage)]
        for image, scene in zip(images, (before, after), strict=True):
            np.testing.assert_array_equal(image.data, scenes.render(scene, 32))
        assert after in [edit.after for edit in edits.possible_edits(before)]
        story = int(document.key) % 2 == 0
        assert [s.loss for s in document.segments] == ([True] * 4 if story else [False, False, True])
        if story:
            assert document.segments[0] == RawText(shapes.SceneSet(seed=4).example(int(document.key))[1])


def test_documents_do_not_depend_on_the_cut_into_shards():
    whole = documents("50", shard_size=1000)
    assert [d.key for d in whole] == [str(index) for index in range(50)]
    assert [d.meta for d in documents("50", shard_size=7)] == [d.meta for d in whole]


def test_scenes_may_stand_in_the_corners():
    for document in documents("40:4:corners"):
        meta = json.loads(json.dumps(document.meta))
        for scene in (scenes.from_graph(meta["before"]), scenes.from_graph(meta["edit"]["after"])):
            assert all(abs(thing.x - 0.5) == pytest.approx(0.33) for thing in scene.things)


def test_scenes_may_have_proportions():
    native = Proportions(area=32 * 64, multiple=8)
    found = documents("40:4:corners:2x1+1x2", native=native)
    for document in found:
        meta = json.loads(json.dumps(document.meta))
        images = [s.data for s in document.segments if isinstance(s, RawImage)]
        for image, graph in zip(images, (meta["before"], meta["edit"]["after"]), strict=True):
            np.testing.assert_array_equal(image, scenes.render(scenes.from_graph(graph), 40))
    sides = {(d.meta["before"]["width"], int(d.key) % 2) for d in found}
    assert sides == {(1.6, 0), (1.6, 1), (0.8, 0), (0.8, 1)}  # stories and requests of both


def test_squares_are_what_they_always_were():
    metas = json.dumps([d.meta for d in documents("40:4")] + [d.meta for d in documents("40:4:corners")])
    assert hashlib.sha256(metas.encode()).hexdigest()[:16] == "bdcbe3cab661a430"


def test_another_path_is_refused():
    with pytest.raises(ConfigError, match=r"edits:many should be a number of scenes, .* as edits:20000:7"):
        reader.shards("many", OPTIONS)


def documents(path, shard_size=64, native=None):
    options = ReadOptions(image_size=32, shard_size=shard_size, native=native)
    return [d for shard in reader.shards(path, options) for d in reader.read(shard, options)]
