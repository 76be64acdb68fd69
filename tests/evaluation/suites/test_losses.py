import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from helpers import (
    CODEBOOK,
    SEVERAL,
    SHAPES,
    code_codec,
    code_corpus,
    random_image,
    tiny_codec,
    tiny_config,
    tiny_corpus,
    token_config,
)
from transfusion_jax.config import SUITES, ConfigError
from transfusion_jax.data.batch import stack
from transfusion_jax.data.datasets import Data
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source, Text
from transfusion_jax.data.tokenizer import ByteTokenizer, SpecialTokens
from transfusion_jax.evaluation.suites.loss import lower, measured
from transfusion_jax.evaluation.suites.text import Once
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.tasks.base import make_task

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
    nats = 300 * (surprise - 9) + 5 * surprise  # six rows of 48 and a part of one; 5 are EOS
    assert found["pairs_perplexity"] == pytest.approx(math.exp(nats / 305), rel=1e-4)
    assert found["pairs_bits_per_byte"] == pytest.approx(nats / 300 / math.log(2), rel=1e-4)
    assert found["texts_perplexity"] == pytest.approx(math.exp(surprise), rel=2e-3)  # the norm has an ε
    assert found["texts_bits_per_byte"] == pytest.approx(61 / 60 * surprise / math.log(2), rel=5e-3)


def test_the_text_suite_needs_texts():
    pictured = tiny_corpus().sources[:1]
    with pytest.raises(ConfigError, match="needs held-out texts"):
        SUITES["text"].run(LATENTS, None, Data(tiny_corpus(), Corpus(pictured), tiny_codec()), KEY)


@pytest.mark.parametrize("capacity", [0, 31], ids=["whole rows", "capped rows"])
def test_rows_of_the_text_suite_hold_each_text_once(capacity):
    task = make_task(tiny_config(data__max_text=capacity))
    texts = Source(
        "texts", DocumentList([Document((Text(np.full(n, n, np.int32)),)) for n in (1, 7, 0, 19, 18, 3)])
    )
    rows = Once(texts, task.config, tiny_codec().special)
    assert len(rows) == 2
    batch = stack([rows[row] for row in range(len(rows))])
    np.testing.assert_array_equal(batch.token_weight.sum(1), [capacity or 48, 54 - (capacity or 48)])
    bearing = batch.token_weight > 0
    counts = np.bincount(batch.targets[bearing], minlength=22)
    assert {n: counts[n] for n in (1, 7, 19, 18, 3)} == {1: 1, 7: 7, 19: 19, 18: 18, 3: 3}
    assert counts[tiny_codec().special.eos] == 6


def test_a_character_that_a_row_cuts_counts_by_its_bytes():
    """Of three bytes a character, and rows of 48 elements of which the first is BOS."""
    task = make_task(tiny_config(model__vocabulary=256, evaluation__rows=8))
    tokenizer = ByteTokenizer()
    codec = replace(tiny_codec(), tokenizer=tokenizer, special=SpecialTokens.of(tokenizer))
    texts = ["日本語" * 9, "中文" * 20]
    documents = [Document((Text(tokenizer.encode(text)),)) for text in texts]
    data = Data(tiny_corpus(), Corpus((Source("texts", DocumentList(documents)),)), codec)
    config = replace(
        task.config, data=replace(task.config.data, sources={"texts": task.config.data.sources["texts"]})
    )
    task, size = make_task(config), len("".join(texts).encode())
    found = SUITES["text"].run(task, task.init(KEY), data, KEY)
    nats = math.log(found["texts_perplexity"]) * (size + 2)  # two are EOS
    assert found["texts_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


@pytest.mark.parametrize("family", ["latents", "codes"])
def test_the_numbers_are_those_of_exactly_these_rows_whatever_the_batch_and_its_parts(family):
    """Seven rows fill no batch here but the first; the first one is all of them at once."""
    make = {"latents": tiny_config, "codes": token_config}[family]
    found = []
    for batch_rows, accumulation in ((7, 1), (4, 1), (6, 3), (16, 16)):
        task = make_task(make(evaluation__rows=7, batch_rows=batch_rows, accumulation=accumulation))
        data = Data(tiny_corpus(), tiny_corpus(1), tiny_codec())
        if family == "codes":
            data = Data(code_corpus(), code_corpus(1), code_codec())
        params = params_of(task)
        suites = {name: SUITES[name].run(task, params, data, KEY) for name in ("loss", "text", "images")}
        found.append({f"{name}/{metric}": v for name, values in suites.items() for metric, v in values.items()})
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
    rows = make_rows(data.held_out, task.config, data.codec.special)
    read = [batch for batch, _ in measured(task, params, rows, 7, KEY)]
    weights = sum(float(batch.token_weight.sum()) for batch in read)
    assert weights == sum(float(rows[row].token_weight.sum()) for row in range(7))
    assert {batch.tokens.shape for batch in read} == {(7, 48)}


def test_an_evaluation_takes_the_memory_of_a_part_of_a_batch():
    """The temporary bytes of sixteen rows: one at a time, and all at once."""
    sizes = []
    for accumulation in (16, 1):
        task = make_task(tiny_config(batch_rows=16, accumulation=accumulation, data__context_length=256))
        program = lower(task, task.model.abstract_params(), make_mesh(task.config.mesh, jax.devices()[:1]))
        sizes.append(program.compile().memory_analysis().temp_size_in_bytes)
    assert sizes[0] < sizes[1] / 4


def test_a_loss_that_no_row_bears_is_absent():
    params, texts = params_of(LATENTS), Corpus(tiny_corpus(1).sources[1:])
    config = replace(LATENTS.config.data, sources={"texts": LATENTS.config.data.sources["texts"]})
    task = make_task(replace(LATENTS.config, data=config))
    data = Data(texts, texts, tiny_codec())
    found = SUITES["loss"].run(task, params, data, KEY)
    assert found.keys() == {"loss", "loss_text", "bits_per_byte"}
    assert found["loss"] == found["loss_text"]
    assert SUITES["images"].run(task, params, data, KEY) == {}


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


SIZED = {"latents": tiny_config, "codes": token_config}
MANY_SHAPES = dict(SEVERAL, data__max_images=12, data__image_first=0.0, evaluation__rows=8, evaluation__images=20)


@pytest.mark.parametrize("family", SIZED)
def test_losses_by_size_are_parts_of_the_whole(family):
    """Of latents each image weighs one, of codes each code."""
    task = make_task(SIZED[family](**MANY_SHAPES))
    data = shaped_data(task, SHAPES)
    found, by_noise = (SUITES[name].run(task, params_of(task), data, KEY) for name in ("loss", "images"))
    groups = {name: value for name, value in found.items() if "/" in name}
    assert groups.keys() == {"loss_image/size_1", "loss_image/size_2"}  # of up to 6 patches, or 24 codes
    assert {name: by_noise[name] for name in (*groups, "loss_image")} == groups | {
        "loss_image": found["loss_image"]
    }
    assert ("loss_image/noise_0" in by_noise) == (family == "latents")
    rows = make_rows(data.held_out, task.config, data.codec.special)
    sizes = np.concatenate([rows[row].media["images"].grid.prod(axis=-1) for row in range(8)])
    weights = sizes if family == "codes" else (sizes > 0)
    large = sizes > task.config.model.patches / 4
    total = sum(found[f"loss_image/size_{1 + i}"] * weights[large == i].sum() for i in (False, True))
    assert total / weights.sum() == pytest.approx(found["loss_image"], rel=1e-5)


@pytest.mark.parametrize("family", SIZED)
@pytest.mark.parametrize(("shape", "size"), [((2, 2), 1), ((2, 8), 2)])
def test_images_of_one_size_are_in_its_bucket(family, shape, size):
    task = make_task(SIZED[family](**MANY_SHAPES))
    found = SUITES["loss"].run(task, params_of(task), shaped_data(task, [shape]), KEY)
    assert [name for name in found if "/" in name] == [f"loss_image/size_{size}"]
    assert found[f"loss_image/size_{size}"] == found["loss_image"]


@pytest.mark.parametrize("family", SIZED)
def test_a_caption_of_known_letters_costs_the_same_behind_images_of_any_shape(family):
    task = make_task(SIZED[family](**MANY_SHAPES))
    found = SUITES["captions"].run(task, constant(task, 3, 9.0), shaped_data(task, SHAPES, [3, 4]), KEY)
    surprise = math.log(math.exp(9) + task.config.model.entries - 1)
    assert found["caption_loss"] == pytest.approx(surprise - 9 / 2, rel=1e-4)


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


def shaped_data(task, shapes, letters=(1, 2, 3)):
    """Captioned images of these shapes by turns, all held out."""
    random, codes = np.random.default_rng(0), task.config.model.images == "codes"
    documents = []
    for height, width in [shapes[n % len(shapes)] for n in range(20)]:
        image = random.integers(0, CODEBOOK, (height, width), np.int32) if codes else None
        image = Image(image) if codes else random_image(random, height, width)
        documents.append(Document((Text(np.array(letters, np.int32)), image)))
    corpus = Corpus((Source("pairs", DocumentList(documents)), tiny_corpus(1).sources[1]))
    return Data(corpus, corpus, code_codec() if codes else tiny_codec())


def other_images(corpus):
    """The same captions, each with another's image."""
    pairs, texts = corpus.sources
    documents = [pairs.documents[n] for n in range(len(pairs))]
    swapped = [Document((d.segments[0], documents[n - 1].segments[1])) for n, d in enumerate(documents)]
    return Corpus((Source("pairs", DocumentList(swapped)), texts))
