"""Drawing and writing with a tiny untrained model: what depends on what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import LATENT, media_of, special, tiny_codec, tiny_config
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.generation.single import draw_images, write_texts
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.tasks.transfusion import TransfusionTask

CONFIG = tiny_config(sampling__steps=4, sampling__guidance=2.0)
TASK = TransfusionTask(CONFIG)
LENGTH = 24  # elements of a row by hand


@pytest.fixture(scope="module")
def params():
    """Weights large enough that the prompt matters."""
    return jax.tree.map(lambda p: 5 * p, TASK.init(jax.random.key(0)))


def test_an_image_depends_on_seed_place_and_prompt_alone(params):
    one = draw_images(TASK, params, tiny_codec(), ["abc"], seed=1)
    among = draw_images(TASK, params, tiny_codec(), ["abc", "dddddd", "abc"], seed=1)
    np.testing.assert_allclose(among[0], one[0], atol=1e-4)
    assert np.abs(among[2] - one[0]).max() > 0.01  # the same prompt at another place
    assert np.abs(draw_images(TASK, params, tiny_codec(), ["abc"], seed=2)[0] - one[0]).max() > 0.01
    assert np.abs(draw_images(TASK, params, tiny_codec(), ["xyz"], seed=1)[0] - one[0]).max() > 1e-4


def test_guidance_moves_the_image_and_one_is_none(params):
    drawn = {g: draw_images(TASK, params, tiny_codec(), ["abc"], 1, guided(g))[0] for g in (0.0, 1.0, 1.001, 3.0)}
    (empty,) = draw_images(TASK, params, tiny_codec(), [""], seed=1, sampling=guided(1.0))
    np.testing.assert_allclose(drawn[0.0], empty, atol=1e-4)  # a scale of 0 is the other branch
    np.testing.assert_allclose(drawn[1.0], drawn[1.001], atol=0.01)
    assert np.abs(drawn[3.0] - drawn[1.0]).max() > 1e-3


def test_images_lie_within_the_bounds_of_pixels(params):
    images = draw_images(TASK, params, tiny_codec(), ["abc"] * 3, seed=1, sampling=CONFIG.sampling_with(steps=2))
    assert [image.shape for image in images] == [LATENT] * 3
    assert np.abs(images).max() <= 1


def test_each_token_is_the_likeliest_after_all_before_it(params):
    random = np.random.default_rng(0)
    image = Image(random.standard_normal(LATENT).astype(np.float32))
    documents = [
        Document((Text(np.array([1, 2, 3])), image, Text(np.array([4])))),
        Document((Text(np.array([5])),)),
    ]
    texts = write_texts(TASK, params, tiny_codec(), documents, Writing(max_tokens=5))
    for document, text in zip(documents, texts, strict=True):
        assert text == by_hand(params, document, 5)


def guided(scale):
    return CONFIG.sampling_with(guidance=scale)


@jax.jit
def logits_of(params, latents, tokens, patches, ends):
    """Of each element of a row that is one document."""
    bound = TASK.model.bind(params)
    x, _ = bound.embed(tokens, patches, media_of(latents, CONFIG.model), jnp.zeros((1, 1), jnp.int32))
    hidden, _ = bound.trunk(x, Spans(jnp.zeros_like(ends), ends), jnp.arange(LENGTH)[None])
    return bound.text_logits(hidden)


def by_hand(params, document, count):
    """Greedy text, one document at a time, from the model's pure steps."""
    tokens, patches, ends = [special().bos], [-1], [1]
    latents = np.zeros((1, 1, *LATENT), np.float32)
    for segment in document.segments:
        if isinstance(segment, Text):
            added = [(int(t), -1, len(tokens) + i + 1) for i, t in enumerate(segment.tokens)]
        else:
            latents[0, 0] = segment.latent
            begin = len(tokens)
            added = [(special().boi, -1, begin + 1)]
            added += [(special().pad, p, begin + 5) for p in range(4)]
            added += [(special().eoi, -1, begin + 6)]
        for one in added:
            for column, value in zip((tokens, patches, ends), one, strict=True):
                column.append(value)
    written = []
    while len(written) < count:
        rest = range(len(tokens), LENGTH)  # nothing before it sees it
        row = (*tokens, *[0] * len(rest)), (*patches, *[-1] * len(rest))
        columns = [np.array([column]) for column in (*row, (*ends, *(n + 1 for n in rest)))]
        logits = np.array(logits_of(params, latents, *columns)[0, len(tokens) - 1])
        logits[[special().bos, special().boi, special().eoi, special().pad]] = -np.inf
        best = int(np.argmax(logits))
        if best == special().eos:
            break
        written.append(best)
        for column, value in zip((tokens, patches, ends), (best, -1, len(tokens) + 1), strict=True):
            column.append(value)
    return tiny_codec().tokenizer.decode(np.array(written, int))
