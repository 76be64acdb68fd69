"""Images of any shape: each is drawn as if it were alone, in a row computed whole, whatever is drawn beside it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import code_codec, embed_at, random_image, tiny_codec, tiny_config, token_config
from transfusion_jax.config import ConfigError
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.generation import phases, reference
from transfusion_jax.generation.drawing import batch_room, batches_of, patch_room
from transfusion_jax.generation.guidance import combine_branches
from transfusion_jax.generation.interleaved import Request, generate
from transfusion_jax.generation.prompt import before_image, prompt_of, rows_of
from transfusion_jax.generation.single import caption_images, draw_images
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.tasks.base import make_task

SHAPES = dict(model__latent_shape=(4, 6, 2), model__max_side=8)  # 6 patches, sides of up to 4
MARKS, AXES = dict(model__shape_marks=True), dict(model__rope_sections=(2, 1, 1))
FAMILIES = {
    "linear": {},
    "marks, three axes": MARKS | AXES,
    "unet": MARKS | dict(model__patch_coder="unet", model__unet_channels=(8, 8), model__unet_blocks=1),
    "untied": MARKS | AXES | dict(model__modality_weights="untied"),
    "causal, larger ones noisier": MARKS | dict(model__image_attention="causal", diffusion__timestep_base=2),
}
SLOW = {"unet", "untied"}
GRIDS = [(2, 3), (1, 4), (3, 1), (1, 1), (2, 2)]
PROMPTS = ["abc", "", "abcdefgh", "c", "de"]
COMMON = dict(sampling__steps=6, sampling__guidance=2.0, data__context_length=64)
RANDOM = np.random.default_rng(0)
WIDE, TALL = random_image(RANDOM, 2, 8), random_image(RANDOM, 6, 4)


def made(config, seed=1):
    """A task and weights large enough that everything matters."""
    task = make_task(config)
    random = np.random.default_rng(seed)
    fresh = task.init(jax.random.key(0))
    return task, jax.tree.map(lambda p: p + 0.3 * random.standard_normal(p.shape, np.float32) * (p.ndim > 1), fresh)


@pytest.fixture(
    scope="module", params=[pytest.param(f, marks=[pytest.mark.slow] if f in SLOW else []) for f in FAMILIES]
)
def family(request):
    return made(tiny_config(**COMMON, **SHAPES, **FAMILIES[request.param]))


@pytest.fixture(scope="module")
def marked():
    return made(tiny_config(**COMMON, **SHAPES, **MARKS, **AXES))


def test_images_of_several_shapes_are_those_of_the_whole_row(family):
    task, params = family
    codec = tiny_codec()
    drawn = draw_images(task, params, codec, PROMPTS, 3, grids=GRIDS)
    for number, (prompt, grid) in enumerate(zip(PROMPTS, GRIDS, strict=True)):
        document, key = prompt_of(prompt, codec), image_key(3, number, 1)[None]
        expected = reference.draw_latents(task, params, codec, [document], key, task.config.sampling, grid)
        assert drawn[number].shape == (2 * grid[0], 2 * grid[1], 2)
        np.testing.assert_allclose(drawn[number], codec.images(expected)[0], atol=1e-4)
        assert np.std(drawn[number]) > 0.1


def test_an_image_is_the_same_in_any_company(marked):
    task, params = marked
    together = draw_images(task, params, tiny_codec(), PROMPTS, 3, grids=GRIDS)
    requests = [Request(prompt_of(PROMPTS[n], tiny_codec()), "image", 3, n, GRIDS[n]) for n in (3, 1)]
    for sample, expected in zip(
        generate(task, params, tiny_codec(), requests), (together[3], together[1]), strict=True
    ):
        np.testing.assert_allclose(sample.images[0], expected, atol=1e-4)


def test_the_model_chooses_a_shape_as_likely_as_it_thinks(marked):
    """Both sides, against chances from whole rows; images never have more patches than the model allows."""
    task, params = marked
    codec, config, count = tiny_codec(), task.config.model, 300
    document = before_image(prompt_of("abc", codec), codec)
    rows = jax.tree.map(lambda x: np.repeat(x, count, axis=0), rows_of([document], task.config, codec)[0])
    state = phases.prefill(task, 64, params, rows, jnp.full(count, 5))
    keys = jax.random.split(jax.random.key(0), count)
    _, free = phases.write_shapes(task, params, state, jnp.full(count, True), jnp.zeros((count, 2), int), keys)
    sides = [chances_behind(task, params, document, [])] + [
        chances_behind(task, params, document, [height]) for height in range(1, 5)
    ]
    free = np.asarray(free)
    assert free.min() >= 1
    assert free.prod(axis=1).max() <= config.patches
    expected = np.zeros((5, 5))
    for height in range(1, 5):
        widths = sides[height][: config.patches // height]
        expected[height, 1 : 1 + len(widths)] = sides[0][height - 1] * widths / widths.sum()
    found = np.zeros((5, 5))
    np.add.at(found, tuple(free.T), 1 / count)
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / count))
    asked = jnp.tile(jnp.array([[3, 1]]), (count, 1))
    _, forced = phases.write_shapes(task, params, state, jnp.full(count, True), asked, keys)
    np.testing.assert_array_equal(forced, asked)


def test_texts_and_images_of_several_shapes_made_in_one_call():
    """Each part is what it is behind all before it, and the model's own marks stand there."""
    config, codec = tiny_config(**COMMON, **SHAPES, **MARKS, **AXES), tiny_codec()
    for seed in range(50):
        task, params = made(config, seed)
        (sample,) = generate(task, params, codec, [Request(prompt_of("ab", codec))], writing=GREEDY, max_images=2)
        shapes = [image.shape for image in sample.images]
        if len(shapes) == 2 and len(set(shapes)) == 2 and len(sample.text) > 2:
            break
    segments = list(prompt_of("ab", codec).segments)
    for segment in sample.segments:
        if isinstance(segment, str):
            before = Document(tuple(segments))
            written = reference.write_greedily(task, params, codec, [before], len(segment))
            assert written == [segment]
            segments.append(Text(codec.tokenizer.encode(segment)))
            continue
        key = image_key(0, 0, 1 + sum(isinstance(s, Image) for s in segments))[None]
        grid, before = (segment.shape[0] // 2, segment.shape[1] // 2), [Document(tuple(segments))]
        latent = reference.draw_latents(task, params, codec, before, key, config.sampling, grid)
        np.testing.assert_allclose(codec.images(latent)[0], segment, atol=1e-4)
        segments.append(Image(codec.latents(segment[None])[0]))


@pytest.mark.parametrize("marks", [False, True])
def test_an_edit_keeps_the_shape_of_the_image_before(marks):
    task, params = made(tiny_config(**COMMON, **SHAPES, model__shape_marks=marks))
    documents = [Document((WIDE, Text(np.array([3])))), Document((WIDE, TALL))]
    samples = generate(task, params, tiny_codec(), [Request(document, "image") for document in documents])
    assert [sample.images[0].shape for sample in samples] == [(2, 8, 2), (6, 4, 2)]
    (asked,) = generate(task, params, tiny_codec(), [Request(documents[0], "image", grid=(2, 1))])
    assert asked.images[0].shape == (4, 2, 2)


def test_without_marks_an_image_has_the_largest_shape_unless_asked(family):
    task, params = family
    if not task.config.model.shape_marks:
        assert draw_images(task, params, tiny_codec(), ["a"], 0)[0].shape == (4, 6, 2)


def test_texts_and_images_guide_apart_with_marks_in_every_branch(marked):
    task, params = marked
    document = Document((WIDE, Text(np.array([3, 4]))))

    def drawn(document=document, **how):
        sampling, asked = task.config.sampling_with(**how), Request(document, "image", grid=(3, 2))
        return generate(task, params, tiny_codec(), [asked], sampling)[0].images[0]

    nothing, image_alone = drawn(Document(()), guidance=1.0), drawn(Document((WIDE,)), guidance=1.0)
    np.testing.assert_allclose(drawn(guidance=0.0), nothing, atol=1e-4)
    np.testing.assert_allclose(drawn(guidance=0.0, image_guidance=1.0), image_alone, atol=1e-4)
    assert np.abs(nothing - image_alone).max() > 1e-2


@pytest.mark.parametrize("changes", [{}, MARKS | AXES], ids=["one axis", "marks, three axes"])
def test_the_likeliest_codes_of_any_grid_are_those_of_the_whole_row(changes):
    shapes = dict(model__latent_shape=(2, 3, 1), model__max_side=4, sampling__temperature=0.0)
    config = token_config(data__context_length=64, sampling__guidance=1.0, **shapes, **changes)
    task, params = made(config)
    codec = code_codec()
    drawn = draw_images(task, params, codec, PROMPTS, 3, grids=GRIDS)
    for prompt, grid, image in zip(PROMPTS, GRIDS, drawn, strict=True):
        codes = codec.latents(image[None])[0]
        assert codes.shape == grid
        document = Document((*prompt_of(prompt, codec).segments, Image(codes)))
        rows, _ = rows_of([document], config, codec)
        logits = logits_of(task, params, rows)[0]
        coded = np.flatnonzero(np.isin(rows.tokens[0], config.model.first_code + np.arange(config.model.codebook)))
        coded = coded[: codes.size]
        of_codes = logits[coded - 1, config.model.first_code : config.model.first_side]
        np.testing.assert_array_equal(of_codes.argmax(-1), codes.ravel())


def test_codes_of_shapes_that_the_model_chooses():
    config = token_config(
        data__context_length=64, model__latent_shape=(2, 3, 1), model__max_side=4, **MARKS, **AXES
    )
    task = make_task(config)
    drawn = draw_images(task, task.init(jax.random.key(0)), code_codec(), ["abc"] * 16, 1)
    shapes = {image.shape[:2] for image in drawn}
    assert len(shapes) > 3
    assert max(height * width for height, width in shapes) <= 6


def test_images_of_any_shape_are_captioned(marked):
    task, params = marked
    images = [np.zeros((*shape, 2), np.float32) for shape in ((4, 6), (2, 8), (2, 2), (2, 8))]
    texts = caption_images(task, params, tiny_codec(), images, Writing(max_tokens=3))
    alone = caption_images(task, params, tiny_codec(), images[1:2], Writing(max_tokens=3))
    assert texts[1] == texts[3] == alone[0]


def test_a_shape_that_the_model_does_not_take_is_refused(marked):
    task, params = marked
    for grid, words in (((3, 3), "allows 24 places"), ((1, 5), "a side of 8")):
        for follow in ("image", "any"):
            with pytest.raises(ConfigError, match=words):
                generate(task, params, tiny_codec(), [Request(Document(()), follow, grid=grid)])
    one_size = make_task(tiny_config(**COMMON))
    with pytest.raises(ConfigError, match="images of several shapes need"):
        generate(
            one_size, one_size.init(jax.random.key(0)), tiny_codec(), [Request(Document(()), "image", grid=(1, 2))]
        )
    tight = prompt_of("a" * 56, tiny_codec())
    with pytest.raises(ConfigError, match="shorten the prompt"):
        generate(task, params, tiny_codec(), [Request(tight, "image", grid=(2, 3))] * 2, max_images=1)
    fits = generate(task, params, tiny_codec(), [Request(tight, "image", grid=(1, 2))])
    assert fits[0].images[0].shape == (2, 4, 2)


def test_a_deviation_is_that_of_the_values_that_there_are():
    random = np.random.default_rng(0)
    predictions = jnp.asarray(random.standard_normal((4, 5, 3)), jnp.float32)  # two branches of two images
    there = jnp.array([[True] * 5, [True] * 2 + [False] * 3])[..., None]
    weights = jnp.array([3.0, -2.0])
    found = combine_branches(predictions, weights, 0.7, there)
    for image, patches in ((0, 5), (1, 2)):
        alone = combine_branches(predictions[image::2, :patches], weights, 0.7)
        np.testing.assert_allclose(found[image, :patches], alone[0], rtol=1e-5)
    np.testing.assert_allclose(
        combine_branches(predictions, jnp.tile(weights, (2, 1)), 0.7, there), found, rtol=1e-5
    )


def test_room_for_an_image_is_little_more_than_it_takes():
    model = tiny_config(model__latent_shape=(64, 64, 2), model__max_side=128, data__context_length=2048).model
    rooms = {patches: patch_room(patches, model) for patches in range(1, model.patches + 1)}
    assert all(patches <= room <= max(4, 1.25 * patches + 3) for patches, room in rooms.items())
    assert rooms[model.patches] == model.patches
    assert len({room for patches, room in rooms.items() if 256 < patches <= 512}) == 4


def test_images_are_drawn_together_so_that_the_fewest_patches_are_computed():
    """Against every way to cut the images, in order of their rooms, into batches."""
    random = np.random.default_rng(0)
    for count in (1, 2, 5, 9):
        for _ in range(20):
            rooms = random.choice([16, 20, 24, 28, 32, 64], count).tolist()
            found = batches_of(rooms)
            assert sorted(place for places, _ in found for place in places.tolist()) == list(range(count))
            assert all(rooms[place] <= room for places, room in found for place in places.tolist())
            rising = sorted(rooms)
            cuts = [at for at in range(1, count) if rising[at] != rising[at - 1]]
            ways = itertools.chain.from_iterable(itertools.combinations(cuts, n) for n in range(len(cuts) + 1))
            parts = [itertools.pairwise([0, *way, count]) for way in ways]
            least = min(sum(batch_room(end - begin) * rising[end - 1] for begin, end in part) for part in parts)
            assert sum(batch_room(len(places)) * room for places, room in found) == least


GREEDY = Writing(max_tokens=20)


def image_key(seed, number, image):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), image)


def logits_of(task, params, rows):
    """Logits of whole rows."""
    model = task.model.bind(params)
    if task.config.model.images == "codes":
        x, places = model.embed(rows.tokens)[0], jnp.zeros((len(rows.tokens), 0), jnp.int32)
    else:
        x, places = embed_at(model, rows)
    hidden, _ = model.trunk(x, rows.spans, rows.positions, patch_places=places)
    return np.asarray(model.text_logits(hidden))


def chances_behind(task, params, document, sides):
    """Probabilities of each side, of those that the model allows, behind a prompt with BOI and some marks."""
    config = task.config.model
    marks = Text(np.array([config.first_side + side - 1 for side in sides], np.int32))
    rows, lengths = rows_of([Document((*document.segments, marks))], task.config, tiny_codec())
    logits = logits_of(task, params, rows)[0, lengths[0] - 1, config.first_side : config.entries]
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
