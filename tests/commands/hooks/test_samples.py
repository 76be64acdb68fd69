import numpy as np
import pytest
from PIL import Image as Pillow

from helpers import SEVERAL, SHAPES, tiny_codec, tiny_config
from transfusion_jax.commands.hooks import samples
from transfusion_jax.data.datasets import Data
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source, Text
from transfusion_jax.generation.png import grid
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.step.state import RunContext


@pytest.fixture
def data():
    """Held-out images of all shapes, each with a caption of its own."""
    pairs = [
        Document((Text(np.array([number])), Image(np.full((*shape, 2), number, np.float32))))
        for number, shape in enumerate(SHAPES)
    ]
    return Data(Corpus(()), Corpus((Source("pairs", DocumentList(pairs)),)), tiny_codec())


def test_each_caption_is_drawn_in_the_shape_of_its_image(data):
    model = tiny_config(**SEVERAL).model
    expected = {letter: (h // 2, w // 2) for letter, (h, w) in zip("abcde", SHAPES, strict=True)}
    assert samples.held_out_prompts(data, model, 10) == expected
    assert samples.held_out_prompts(data, model, 2) == dict(list(expected.items())[:2])


@pytest.mark.parametrize("model", [dict(model__max_side=8, model__shape_marks=True), {}])
def test_a_model_of_one_size_or_one_that_chooses_is_told_no_shape(data, model):
    assert samples.held_out_prompts(data, tiny_config(**model).model, 10) == dict.fromkeys("abcde")


def test_images_of_several_shapes_are_one_sheet(data, tmp_path, monkeypatch):
    drawn, asked, shown = [np.full((*shape, 1), 0.5) for shape in SHAPES], [], []

    def draw_images(task, params, codec, captions, seed, grids):
        asked.extend(zip(captions, grids, strict=True))
        return drawn

    class Watched:
        def image(self, step, name, sheet):
            shown.append((step, name, sheet))

    monkeypatch.setattr(samples, "draw_images", draw_images)
    config = tiny_config(**SEVERAL, loop__sample_every=3)
    hook = samples.hook(RunContext(make_task(config), config, None), data, Workdir(tmp_path))
    assert hook.function(6, None, Watched()) == {}
    assert asked == list(samples.held_out_prompts(data, config.model, 10).items())
    ((step, name, sheet),) = shown
    assert (step, name) == (6, "samples")
    np.testing.assert_array_equal(sheet, grid(drawn, samples.COLUMNS))
    np.testing.assert_array_equal(np.asarray(Pillow.open(tmp_path / "samples/00000006.png")), sheet)
