import jax
import numpy as np
import pytest

from helpers import tiny_codec, tiny_config, tiny_corpus
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import ConfigError, EvaluationConfig
from transfusion_jax.data.datasets import Codec, Data, plain_statistics
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source, Text
from transfusion_jax.data.tokenizer import ByteTokenizer, SpecialTokens
from transfusion_jax.evaluation.suites import edits, shapes
from transfusion_jax.evaluation.suites.edits import picture
from transfusion_jax.tasks.base import make_task
from transfusion_jax.worlds.shapes import captions as claims
from transfusion_jax.worlds.shapes import scenes

PROMPTS = shapes.make_prompts(140)
TRUE = np.stack([picture(prompt.scene, 32) for prompt in PROMPTS])
CONFIG = dict(model__vocabulary=256, model__latent_shape=(32, 32, 3), model__patch_size=8, evaluation__images=35)


def test_the_config_says_which_scenes_are_asked_about():
    for prompt in shapes.scene_prompts(EvaluationConfig(images=28, scenes="corners")):
        assert {thing.size for thing in prompt.scene.things} == {"large"}
    assert shapes.scene_prompts(EvaluationConfig(images=28)) == PROMPTS[:28]
    for scene, edit, _ in edits.edit_requests(EvaluationConfig(images=28, scenes="corners")):
        assert {thing.size for thing in (*scene.things, *edit.after.things)} == {"large"}
    for arrangement in scenes.ARRANGEMENTS:
        assert EvaluationConfig(scenes=arrangement).scenes == arrangement
    with pytest.raises(ConfigError, match=r"evaluation\.scenes is 'corner'; did you mean .corners."):
        EvaluationConfig(scenes="corner")


def test_prompts_are_of_every_category_by_turns_and_true_of_their_scenes():
    assert [prompt.category for prompt in PROMPTS] == list(shapes.CATEGORIES) * 20
    assert len({prompt.index for prompt in PROMPTS}) == 140
    assert shapes.make_prompts(45) == PROMPTS[:45]
    for prompt in PROMPTS:
        assert claims.parse_caption(prompt.caption) == prompt.claims
        assert claims.true_of(prompt.asked, prompt.scene)


@pytest.mark.parametrize(
    ("caption", "asked"),
    [
        ("a red circle", {"single_object", "colors"}),
        ("three red circles", {"counting"}),
        ("a red circle above a blue square", {"two_object", "position", "color_attr"}),
        ("a red circle and a red square", {"two_object"}),
        ("a red circle left of a blue circle", set()),
        ("two red circles left of a blue square", {"position"}),
        ("a red circle, a blue square and a pink star on a grey background", {"background"}),
    ],
)
def test_a_caption_is_asked_about_by_the_categories_that_fit_it(caption, asked):
    assert {name for name, asks in shapes.CATEGORIES.items() if asks(claims.parse_caption(caption))} == asked


def test_true_drawings_pass_and_others_do_not():
    assert set(shapes.judge_drawings(PROMPTS, TRUE).values()) == {1.0}
    other = shapes.judge_drawings(PROMPTS, np.roll(TRUE, 1, axis=0))
    assert other["generation_accuracy_whole"] == 0
    assert other["generation_accuracy"] < 0.15
    blank = shapes.judge_drawings(PROMPTS, np.ones_like(TRUE))
    assert set(blank.values()) == {0.0}


def test_a_category_asks_for_nothing_but_its_own():
    grey = np.broadcast_to(TRUE.mean(-1, keepdims=True), TRUE.shape)  # no colour is left, and shapes have none
    mirrored = shapes.judge_drawings(PROMPTS, TRUE[:, ::-1, ::-1])
    assert mirrored["generation_accuracy_colors"] < 1  # a triangle on its head is no triangle
    assert mirrored["generation_accuracy_position"] == 0
    assert mirrored["generation_accuracy_background"] == 1
    assert shapes.judge_drawings(PROMPTS, grey)["generation_accuracy_color_attr"] < 0.2


def test_captions_are_true_false_or_mean_nothing():
    scenes, captions = [p.scene for p in PROMPTS], [p.caption for p in PROMPTS]
    assert shapes.judge_captions(scenes, captions) == {"caption_accuracy": 1, "caption_parseable": 1}
    half = captions[:70] + ["a cat"] * 70
    assert shapes.judge_captions(scenes, half) == {"caption_accuracy": 0.5, "caption_parseable": 0.5}
    turned = shapes.judge_captions(scenes, captions[1:] + captions[:1])
    assert turned == {"caption_accuracy": 0, "caption_parseable": 1}


def test_the_suite_asks_the_model_for_drawings_of_captions_and_captions_of_drawings(monkeypatch):
    asked = shapes.make_prompts(35)
    captions = [prompt.caption for prompt in asked]

    def draw(task, params, codec, prompts, seed):
        assert prompts == captions
        return TRUE[:35]

    monkeypatch.setattr(shapes, "draw_images", draw)
    monkeypatch.setattr(shapes, "caption_images", lambda *_: [*captions[:34], "a cat"])
    task = make_task(tiny_config(**CONFIG))
    tokens = codec().tokenizer.encode(captions[0])
    seen = Corpus((Source("shapes", DocumentList([Document((Text(tokens), Image(TRUE[0])))])),))
    data = Data(seen, seen, codec())
    found = shapes.run(task, None, data, jax.random.key(0))
    assert found["judge_accuracy"] == found["generation_accuracy"] == found["generation_accuracy_whole"] == 1
    assert found["caption_accuracy"] == pytest.approx(34 / 35)


def test_the_suite_needs_a_model_that_draws_in_colour():
    config = tiny_config()
    with pytest.raises(ConfigError, match="in colour"):
        shapes.run(make_task(config), None, Data(tiny_corpus(), tiny_corpus(), tiny_codec()), jax.random.key(0))


def codec():
    """Bytes, and pixels as they are."""
    tokenizer = ByteTokenizer()
    return Codec(tokenizer, SpecialTokens.of(tokenizer), Identity(), plain_statistics(3))
