"""Drawing codes: the cache changes nothing, and an image depends on its seed, number and prompt alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import CODEBOOK, code_codec, embed_at, special, token_config
from transfusion_jax.config import ConfigError
from transfusion_jax.data.batch import stack
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.generation.single import caption_images, draw_images, write_texts
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.tasks.base import make_task

CONFIG = token_config(data__caption_dropout=0.0, data__image_first=0.0, model__init_std=0.3)
TASK = make_task(CONFIG)
params = functools.cache(lambda: TASK.init(jax.random.key(0)))
CODEC = code_codec()
PROMPTS = ["abc", "", "hijklm"]


def test_the_likeliest_codes_are_those_of_the_whole_row_without_a_cache():
    drawn = codes_of(PROMPTS, 0, guidance=1.5, temperature=0.0)
    assert drawn.shape == (3, 4, 4)
    assert len(np.unique(drawn)) > 3
    with_prompt, other = code_logits(PROMPTS, drawn), code_logits([""] * 3, drawn)
    np.testing.assert_array_equal(np.argmax(other + 1.5 * (with_prompt - other), -1), drawn.reshape(3, -1))


def test_an_image_depends_on_seed_number_and_prompt_alone():
    together = codes_of(PROMPTS, 7, guidance=2.0, temperature=1.0)
    again = codes_of(["abc", "gg", "hijklm"], 7, guidance=2.0, temperature=1.0)
    np.testing.assert_array_equal(together[[0, 2]], again[[0, 2]])
    assert np.any(together[1] != again[1])
    alone = codes_of(PROMPTS[:1], 7, guidance=2.0, temperature=1.0)
    np.testing.assert_array_equal(alone[0], together[0])
    other = codes_of(PROMPTS[:1], 8, guidance=2.0, temperature=1.0)
    assert np.any(alone != other)


def test_codes_are_drawn_as_often_as_they_are_likely():
    count = 600
    drawn = codes_of(["abc"] * count, 1, guidance=1.0, temperature=1.0)
    blank = np.zeros((1, 4, 4), np.int32)
    expected = jax.nn.softmax(code_logits(["abc"], blank)[0, 0])
    found = np.bincount(drawn[:, 0, 0], minlength=CODEBOOK) / count
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / count))


def test_images_are_drawn_and_captioned():
    images = draw_images(TASK, params(), CODEC, PROMPTS, seed=0)
    assert [image.shape for image in images] == [(4, 4, 1)] * 3
    np.testing.assert_array_equal(CODEC.images(CODEC.latents(np.stack(images))), images)
    assert len(caption_images(TASK, params(), CODEC, images, Writing(max_tokens=3))) == 3


def test_what_a_model_cannot_do_is_refused():
    with pytest.raises(ConfigError, match=r"sampling.steps goes with model.images='latents', not 'codes'"):
        CONFIG.sampling_with(steps=5)
    with pytest.raises(ConfigError, match="shorten the prompt"):
        draw_images(TASK, params(), CODEC, ["a" * 40], 0)
    text = make_task(token_config("none"))
    weights = text.init(jax.random.key(0))
    with pytest.raises(ConfigError, match="draws no images"):
        draw_images(text, weights, CODEC, ["a"], 0)
    with pytest.raises(ConfigError, match="sees no images"):
        caption_images(text, weights, CODEC, np.zeros((1, 4, 4, 1)))
    assert (
        len(write_texts(text, weights, CODEC, [Document((Text(CODEC.tokenizer.encode("ab")),))], Writing(3))) == 1
    )


def codes_of(prompts, seed, **how):
    drawn = draw_images(TASK, params(), CODEC, prompts, seed, CONFIG.sampling_with(**how))
    return CODEC.latents(np.stack(drawn))


def code_logits(prompts, codes):
    """The logits `[S, 16, codebook]` that each code is drawn from, from whole rows as training has them."""
    rows, first = [], []
    for number, (prompt, image) in enumerate(zip(prompts, codes, strict=True)):
        document = Document((Text(CODEC.tokenizer.encode(prompt)), Image(image)))
        rows.append(assemble(number, [Piece(document, 0, document.length(CONFIG.model), 0)], CONFIG, special()))
        first.append(len(prompt) + 1)
    batch = stack(rows)
    x, _ = embed_at(TASK.model.bind(params()), batch)
    hidden, _ = TASK.model.bind(params()).trunk(x, batch.spans, batch.positions)
    place = np.array(first)[:, None] + np.arange(16)
    chosen = jnp.take_along_axis(hidden, place[..., None], axis=1)
    begin = CONFIG.model.first_code
    return np.asarray(TASK.model.bind(params()).text_logits(chosen)[..., begin : begin + CODEBOOK])
