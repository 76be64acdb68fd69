import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from helpers import code_codec, code_corpus, tiny_codec, tiny_config, tiny_corpus, token_config
from transfusion_jax.config import ConfigError
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Source, Text
from transfusion_jax.data.load import Data
from transfusion_jax.evaluation.suite import SUITES
from transfusion_jax.training.tasks import make_task

LATENTS = make_task(tiny_config(evaluation__rows=8, evaluation__images=20, data__image_first=0.0))
CODES = make_task(token_config(evaluation__rows=8, evaluation__images=20))
TEXT = make_task(token_config("none", data__sources={"texts": {"path": "synthetic:text"}}))
KEY = jax.random.key(0)


def test_the_text_suite_reads_each_source_by_itself_and_once():
    """A model that knows one source's only letter: nothing is left to say there, and all elsewhere."""
    known, other = (Document((Text(np.full(60, letter, np.int32)),)) for letter in (3, 4))
    sources = (Source("pairs", DocumentList([known] * 5)), Source("texts", DocumentList([other] * 400)))
    data = Data(tiny_corpus(), Corpus(sources), tiny_codec())
    params = constant(LATENTS, 3, 9.0)
    found = SUITES["text"].run(LATENTS, params, data, KEY)
    entries = LATENTS.config.model.vocabulary + 5
    surprise = math.log(math.exp(9) + entries - 1)
    nats = 331 * (surprise - 9) + 5 * surprise  # seven rows of 48, the last one filled from the front; 5 are EOS
    assert found["pairs_perplexity"] == pytest.approx(math.exp(nats / 336), rel=1e-4)
    assert found["pairs_bits_per_byte"] == pytest.approx(nats / 331 / math.log(2), rel=1e-4)
    assert found["texts_perplexity"] == pytest.approx(math.exp(surprise), rel=2e-3)  # the norm has an ε
    assert found["texts_bits_per_byte"] == pytest.approx(61 / 60 * surprise / math.log(2), rel=5e-3)


def test_the_text_suite_needs_texts():
    pictured = tiny_corpus().sources[:1]
    with pytest.raises(ConfigError, match="needs held-out texts"):
        SUITES["text"].run(LATENTS, None, Data(tiny_corpus(), Corpus(pictured), tiny_codec()), KEY)


def test_losses_of_images_by_noise_are_parts_of_the_whole():
    params = params_of(LATENTS)
    found = SUITES["images"].run(LATENTS, params, data_of(LATENTS), KEY)
    whole = SUITES["loss"].run(LATENTS, params, data_of(LATENTS), KEY)
    assert found["loss_image"] == whole["loss_image"]
    assert not any("/" in name for name in whole)
    bins = [found[f"loss_image/noise_{i}"] for i in range(4)]
    assert min(bins) < found["loss_image"] < max(bins)


def test_of_codes_and_of_text_there_is_no_noise():
    params = params_of(CODES)
    found = SUITES["images"].run(CODES, params, data_of(CODES), KEY)
    assert found == {"loss_image": SUITES["loss"].run(CODES, params, data_of(CODES), KEY)["loss_image"]}
    for name in ("images", "captions", "shapes"):
        with pytest.raises(ConfigError, match="a model of text alone"):
            SUITES[name].run(TEXT, None, data_of(TEXT), KEY)


@pytest.mark.parametrize("task", [LATENTS, CODES], ids=["latents", "codes"])
def test_captions_are_scored_with_their_images_and_without(task):
    params, data = params_of(task), data_of(task)
    found = SUITES["captions"].run(task, params, data, KEY)
    exchanged = SUITES["captions"].run(task, params, replace(data, held_out=other_images(data.held_out)), KEY)
    assert found["caption_loss"] != pytest.approx(exchanged["caption_loss"], rel=1e-3)
    assert found["caption_loss_without_image"] == pytest.approx(exchanged["caption_loss_without_image"], rel=1e-5)


@pytest.mark.parametrize("task", [LATENTS, CODES], ids=["latents", "codes"])
def test_a_caption_of_known_letters_costs_what_they_do(task):
    params, pairs = constant(task, 3, 9.0), data_of(task).held_out.sources[0].documents
    letters = [Document((Text(np.array([3, 4], np.int32)), pairs[n].segments[1])) for n in range(6)]
    data = Data(tiny_corpus(), Corpus((Source("pairs", DocumentList(letters)),)), data_of(task).codec)
    found = SUITES["captions"].run(task, params, data, KEY)
    entries = task.config.model.vocabulary + 5 + task.config.model.codebook
    surprise = math.log(math.exp(9) + entries - 1)
    assert found["caption_loss"] == pytest.approx(surprise - 9 / 2, rel=1e-4)
    assert found["caption_loss_without_image"] == pytest.approx(surprise - 9 / 2, rel=1e-4)


def test_the_captions_suite_needs_captions():
    texts = tiny_corpus().sources[1:]
    with pytest.raises(ConfigError, match="needs held-out images with captions"):
        SUITES["captions"].run(LATENTS, None, Data(tiny_corpus(), Corpus(texts), tiny_codec()), KEY)


def params_of(task):
    return jax.tree.map(lambda p: 5 * p, task.init(KEY))


def constant(task, token, logit):
    """Weights that give one token this logit everywhere behind a text, and zero to all others."""
    params = jax.tree.map(np.zeros_like, task.init(KEY))
    params["embedding"][:, 0] = 1
    params["trunk"]["final_norm"]["scale"][:] = 1
    params["text_head"][0, token] = logit / math.sqrt(task.config.model.width)  # the norm makes one of this
    return params


def data_of(task):
    if task is CODES:
        return Data(code_corpus(), code_corpus(1), code_codec())
    held_out = tiny_corpus(1)
    return Data(tiny_corpus(), Corpus(held_out.sources[1:]) if task is TEXT else held_out, tiny_codec())


def other_images(corpus):
    """The same captions, each with another's image."""
    pairs, texts = corpus.sources
    documents = [pairs.documents[n] for n in range(len(pairs))]
    swapped = [Document((d.segments[0], documents[n - 1].segments[1])) for n, d in enumerate(documents)]
    return Corpus((Source("pairs", DocumentList(swapped)), texts))
