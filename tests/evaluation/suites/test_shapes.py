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

NATIVE = CONFIG | dict(  # pictures of at most 32 × 64 pixels: squares have 40
    model__latent_shape=(32, 64, 3),
    model__max_side=64,
    model__shape_marks=True,
    evaluation__scenes="corners",
    evaluation__proportions=("1x1", "2x1", "1x2", "3x2"),
)
SEVERAL = tiny_config(**NATIVE)


def test_the_config_says_which_scenes_are_asked_about():
    squares = tiny_config(**CONFIG | dict(evaluation__images=28))
    corners = tiny_config(**CONFIG | dict(evaluation__images=28, evaluation__scenes="corners"))
    for prompt in shapes.scene_prompts(corners, codec())[""]:
        assert {thing.size for thing in prompt.scene.things} == {"large"}
    assert shapes.scene_prompts(squares, codec()) == {"": PROMPTS[:28]}
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


def test_scenes_of_a_single_thing_are_asked_of_what_it_is():
    prompts = shapes.make_prompts(30, scenes.SINGLE)
    assert [prompt.category for prompt in prompts] == ["single_object", "colors", "background"] * 10
    assert {len(prompt.scene.things) for prompt in prompts} == {1}


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
    assert set(judged(PROMPTS, TRUE).values()) == {1.0}
    other = judged(PROMPTS, np.roll(TRUE, 1, axis=0))
    assert other["generation_accuracy_whole"] == 0
    assert other["generation_accuracy"] < 0.15
    blank = judged(PROMPTS, np.ones_like(TRUE))
    assert set(blank.values()) == {0.0}


def test_a_category_asks_for_nothing_but_its_own():
    grey = np.broadcast_to(TRUE.mean(-1, keepdims=True), TRUE.shape)  # no colour is left, and shapes have none
    mirrored = judged(PROMPTS, TRUE[:, ::-1, ::-1])
    assert mirrored["generation_accuracy_colors"] < 1  # a triangle on its head is no triangle
    assert mirrored["generation_accuracy_position"] == 0
    assert mirrored["generation_accuracy_background"] == 1
    assert judged(PROMPTS, grey)["generation_accuracy_color_attr"] < 0.2


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

    def draw(task, params, codec, prompts, seed, grids):
        assert prompts == captions
        assert grids == [(4, 4)] * 35
        return TRUE[:35]

    monkeypatch.setattr(shapes, "draw_images", draw)
    monkeypatch.setattr(shapes, "caption_images", lambda *_: [*captions[:34], "a cat"])
    task = make_task(tiny_config(**CONFIG))
    found = shapes.run(task, None, data_of(asked), jax.random.key(0))
    assert found["judge_accuracy"] == found["generation_accuracy"] == found["generation_accuracy_whole"] == 1
    assert found["caption_accuracy"] == pytest.approx(34 / 35)


def test_prompts_of_every_proportion_are_of_the_same_scenes_and_name_the_form_that_is_drawn():
    every = shapes.scene_prompts(SEVERAL, codec())
    assert list(every) == ["1x1", "2x1", "1x2", "3x2"]
    words = {"1x1": "square", "2x1": "wide", "1x2": "tall", "3x2": "wide"}
    for proportion, prompts in every.items():
        named = [prompt for prompt in prompts if form_named(prompt)]
        assert 0.3 < len(named) / len(prompts) < 0.7
        assert {form_named(prompt) for prompt in named} == {words[proportion]}
        for prompt, square in zip(prompts, every["1x1"], strict=True):
            assert (prompt.index, prompt.category) == (square.index, square.category)
            assert prompt.asked == square.asked
            assert (
                prompt.caption.replace(f"{words[proportion]} picture", "square picture").replace(
                    f"{words[proportion]} drawing", "square drawing"
                )
                == square.caption
            )
            assert claims.true_of(prompt.claims, prompt.scene)


def test_prompts_that_name_a_form_do_so_by_turns():
    prompts = shapes.form_prompts(SEVERAL, codec())
    assert len({prompt.index for prompt in prompts}) == len(prompts) == 35
    assert [form_named(prompt) for prompt in prompts] == (["square", "wide", "tall"] * 12)[:35]
    unmarked = tiny_config(**NATIVE | dict(model__shape_marks=False))
    assert shapes.form_prompts(unmarked, codec()) == ()  # nothing chooses
    wide = tiny_config(**NATIVE | dict(evaluation__proportions=("3x2", "2x1")))
    assert {form_named(prompt) for prompt in shapes.form_prompts(wide, codec())} == {"wide"}


def test_the_suite_forces_each_proportion_and_leaves_the_form_to_a_model_with_shape_marks(monkeypatch):
    """True drawings of every prompt; only 2x1 is wrongly drawn square, and every chosen shape is tall."""
    every, naming = shapes.scene_prompts(SEVERAL, codec()), shapes.form_prompts(SEVERAL, codec())
    by_grid = {(5, 5): "1x1", (4, 8): "2x1", (8, 4): "1x2", (4, 6): "3x2"}
    asked = []

    def draw(task, params, codec, prompts, seed, grids=None):
        proportion = by_grid[grids[0]] if grids else "chosen"
        asked.append((proportion, grids and set(grids), len(prompts)))
        wanted = every[proportion] if grids else naming
        assert prompts == [prompt.caption for prompt in wanted]
        drawn = {"2x1": every["1x1"], "chosen": shapes.make_prompts(35, "corners", (0.8, 1.6), naming=True)}
        return [picture(prompt.scene, 40) for prompt in drawn.get(proportion, wanted)]

    monkeypatch.setattr(shapes, "draw_images", draw)
    monkeypatch.setattr(shapes, "caption_images", lambda *_: [prompt.caption for prompt in every["3x2"]])
    found = shapes.run(make_task(SEVERAL), None, data_of(every["1x1"]), jax.random.key(0))
    assert asked == [*((p, {grid}, 35) for grid, p in by_grid.items()), ("chosen", None, 35)]
    for name in ("generation_accuracy", "generation_accuracy_whole"):
        assert [found[f"{name}/{p}"] for p in every] == [1, 0, 1, 1]
        assert found[name] == 0.75
    assert all(found[f"judge_accuracy/{p}"] == 1 for p in every)
    assert found["caption_accuracy/3x2"] == found["caption_accuracy/2x1"] == found["caption_parseable"] == 1
    assert 0.3 < found["caption_accuracy/1x1"] == found["caption_accuracy/1x2"] < 0.7  # none that says "wide"
    forms = [found[f"shape_accuracy_{form}"] for form in ("square", "wide", "tall")]
    assert forms == [0, 0, 1]
    assert found["shape_accuracy"] == pytest.approx(11 / 35)
    assert 0 < found["generation_accuracy_chosen"] < 0.4


def test_without_proportions_images_of_any_shape_are_judged_as_squares(monkeypatch):
    config = tiny_config(**NATIVE | dict(evaluation__proportions=()))
    squares = shapes.make_prompts(35, "corners")
    assert {form_named(prompt) for prompt in squares} == {None}

    def draw(task, params, codec, prompts, seed, grids):
        assert set(grids) == {(5, 5)}
        return [picture(prompt.scene, 40) for prompt in squares]

    monkeypatch.setattr(shapes, "draw_images", draw)
    monkeypatch.setattr(shapes, "caption_images", lambda *_: [prompt.caption for prompt in squares])
    found = shapes.run(make_task(config), None, data_of(squares), jax.random.key(0))
    assert set(found.values()) == {1}
    assert not any("/" in name or name.startswith("shape") for name in found)


def test_a_drawing_of_a_shape_that_no_scene_has_is_wrong():
    prompts = shapes.form_prompts(SEVERAL, codec())[:2]
    specks = [np.zeros((8, 8, 3)), np.zeros((8, 64, 3))]  # one patch, and as wide as there is
    found = shapes.judge_forms(prompts, shapes.see_drawings(specks, 40))
    assert found["shape_accuracy"] == 1
    assert found["generation_accuracy_chosen"] == 0


def test_proportions_that_the_model_does_not_draw_are_refused_before_anything_is_drawn():
    for proportion in ("8x1", "7x5", "4x1"):
        config = tiny_config(**NATIVE | dict(evaluation__proportions=("1x1", proportion)))
        with pytest.raises(
            ConfigError, match=f"holds '{proportion}', and this model draws no such picture"
        ) as caught:
            shapes.check(config, data_of(PROMPTS))
        assert "multiples of 8 pixels, at most 64, and an image has at most 2,048" in str(caught.value)
    with pytest.raises(ConfigError, match=r"evaluation\.proportions goes with model\.max_side"):
        tiny_config(**CONFIG, evaluation__proportions=("2x1",))
    for wrong in ("2:1", "0x1", "wide"):
        with pytest.raises(ConfigError, match=f"evaluation.proportions holds '{wrong}'"):
            EvaluationConfig(proportions=(wrong,))
    with pytest.raises(ConfigError, match="names one twice"):
        EvaluationConfig(proportions=("2x1", "2x1"))


def test_what_is_asked_depends_on_the_proportions():
    texts = {
        proportions: tuple(shapes.SUITE.prompts(tiny_config(**NATIVE | dict(evaluation__proportions=p)), codec()))
        for proportions in ((), ("1x1",), ("2x1",), ("3x2",))
        for p in [proportions]
    }
    assert len(set(texts.values())) == 4
    squares = tiny_config(**CONFIG)
    assert shapes.SUITE.prompts(squares, codec()) == [prompt.caption for prompt in PROMPTS[:35]]


def test_edits_are_asked_of_squares_where_images_have_any_shape():
    assert edits.drawing_size("edits", SEVERAL, data_of(PROMPTS)) == 40
    assert edits.drawing_size("edits", tiny_config(**CONFIG), data_of(PROMPTS)) == 32


def test_the_suite_needs_a_model_that_draws_in_colour():
    config = tiny_config()
    with pytest.raises(ConfigError, match="in colour"):
        shapes.run(make_task(config), None, Data(tiny_corpus(), tiny_corpus(), tiny_codec()), jax.random.key(0))


def codec():
    """Bytes, and pixels as they are."""
    tokenizer = ByteTokenizer()
    return Codec(tokenizer, SpecialTokens.of(tokenizer), Identity(), plain_statistics(3))


def data_of(prompts):
    """One document, of shapes."""
    tokens = codec().tokenizer.encode(prompts[0].caption)
    seen = Corpus((Source("shapes", DocumentList([Document((Text(tokens), Image(TRUE[0])))])),))
    return Data(seen, seen, codec())


def judged(prompts, drawn):
    return shapes.judge_drawings(prompts, shapes.see_drawings(drawn, len(drawn[0])))


def form_named(prompt):
    return next((claim.form for claim in prompt.claims if isinstance(claim, claims.Proportion)), None)
