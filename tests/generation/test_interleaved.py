"""Decoding with a cache is decoding without one, and what a request gets hangs on it alone."""

from pathlib import Path

import jax
import numpy as np
import pytest

from helpers import GROUPED, LATENT, code_codec, embed_at, random_image, tiny_codec, tiny_config, token_config
from transfusion_jax import config as configs
from transfusion_jax.config import ConfigError
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.generation import reference
from transfusion_jax.generation.interleaved import (
    Draws,
    Drew,
    Ended,
    Request,
    Wrote,
    generate,
    rows_at_a_time,
    stream,
)
from transfusion_jax.generation.prompt import prompt_of, rows_of
from transfusion_jax.generation.single import draw_images
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.tasks.base import make_task

FROM_LLM = Path(__file__).parents[2] / "configs/from_llm.py"
FAMILIES = {
    "linear": dict(),
    "unet": dict(model__patch_coder="unet", model__unet_channels=(8, 8), model__unet_blocks=1),
    "untied": dict(model__modality_weights="untied"),
    "causal": dict(model__image_attention="causal"),
    "flow": dict(diffusion__objective="flow"),
    "three axes": dict(model__rope_sections=(2, 1, 1)),
    "several shapes": dict(model__rope_sections=(2, 1, 1), model__max_side=8),
    **GROUPED,
    "llama 3, untied": dict(GROUPED["llama 3"], model__modality_weights="untied"),
}
COMMON = dict(sampling__steps=6, sampling__guidance=2.0, data__context_length=64)
LATENTS = tiny_config(**COMMON)
PROMPTS = ["abc", "", "abcdefgh", "c"]
RANDOM = np.random.default_rng(0)
IMAGES = [random_image(RANDOM) for _ in range(3)]
WIDE, TALL = random_image(RANDOM, 2, 8), random_image(RANDOM, 8, 2)
CODED = [Image(RANDOM.integers(0, 11, LATENT[:2]).astype(np.int32)) for _ in range(3)]


def made(config, seed=1):
    """A task and weights large enough that everything matters."""
    task = make_task(config)
    random = np.random.default_rng(seed)
    fresh = task.init(jax.random.key(0))
    return task, jax.tree.map(lambda p: p + 0.3 * random.standard_normal(p.shape, np.float32) * (p.ndim > 1), fresh)


SLOW = {"causal", "flow", "three axes", *GROUPED, "llama 3, untied"}  # families


@pytest.fixture(
    scope="module", params=[pytest.param(f, marks=[pytest.mark.slow] if f in SLOW else []) for f in FAMILIES]
)
def latents(request):
    return made(
        tiny_config(sampling__steps=6, sampling__guidance=2.0, data__context_length=64, **FAMILIES[request.param])
    )


@pytest.fixture(scope="module")
def story():
    return two_images(LATENTS, tiny_codec())


@pytest.fixture(scope="module")
def codes():
    return made(token_config(data__context_length=64, sampling__guidance=1.5))


def test_caches_with_few_heads_of_keys_hold_more_rows():
    whole, few = (configs.load(f"{FROM_LLM}:llama-3-8b", [f"model.kv_heads={n}"]) for n in (0, 8))
    assert (rows_at_a_time(whole), rows_at_a_time(few)) == (1, 4)  # of 8 GiB or of 2, with guidance


def test_images_are_those_of_the_whole_row(latents):
    task, params = latents
    codec = tiny_codec()
    documents, keys = [prompt_of(text, codec) for text in PROMPTS], image_keys(3, len(PROMPTS), 1)
    expected = codec.images(reference.draw_latents(task, params, codec, documents, keys, task.config.sampling))
    drawn = draw_images(task, params, codec, PROMPTS, 3)
    np.testing.assert_allclose(drawn, expected, atol=1e-4)
    assert np.std(drawn) > 0.1


def test_texts_are_those_of_the_whole_row(latents):
    task, params = latents
    several = task.config.model.max_side > 0
    documents = [
        Document((Text(np.array([1, 2, 3])), WIDE if several else IMAGES[0], Text(np.array([4])))),
        Document((Text(np.array([5])),)),
        Document((IMAGES[1], TALL if several else IMAGES[2])),
        Document(()),
    ]
    expected = reference.write_greedily(task, params, tiny_codec(), documents, 12)
    requests = [Request(document, "text") for document in documents]
    found = generate(task, params, tiny_codec(), requests, writing=Writing(max_tokens=12))
    assert [sample.text for sample in found] == expected
    assert len(set(expected)) >= 4 - task.config.model.tied_embeddings  # which like to repeat a token
    assert {sample.reason for sample in found} <= {"end", "length"}


def test_texts_among_codes_are_those_of_the_whole_row(codes):
    task, params = codes
    documents = [Document((Text(np.array([1, 2, 3])), CODED[0])), Document((CODED[1],))]
    expected = reference.write_greedily(task, params, code_codec(), documents, 12)
    found = generate(task, params, code_codec(), [Request(d, "text") for d in documents], writing=Writing(12))
    assert [sample.text for sample in found] == expected


def test_what_is_made_in_one_call_is_what_each_part_gives_alone(story):
    task, params, sample = story
    codec, segments = tiny_codec(), list(prompt_of("ab", tiny_codec()).segments)
    for segment in sample.segments:
        if isinstance(segment, str):
            segments.append(Text(codec.tokenizer.encode(segment)))
        else:
            drawn = sum(isinstance(s, Image) for s in segments)
            keys, sampling = image_keys(0, 1, 1 + drawn), task.config.sampling
            latent = reference.draw_latents(task, params, codec, [Document(tuple(segments))], keys, sampling)
            np.testing.assert_allclose(codec.images(latent)[0], segment, atol=1e-4)
            segments.append(Image(codec.latents(segment[None])[0]))
    check_likeliest(task, params, codec, Document(tuple(segments)))


def test_codes_and_texts_made_in_one_call_are_the_likeliest():
    config = token_config(data__context_length=64, sampling__guidance=1.0, sampling__temperature=0.0)
    task, params, sample = two_images(config, code_codec())
    codec, segments = code_codec(), list(prompt_of("ab", code_codec()).segments)
    for segment in sample.segments:
        made = isinstance(segment, str)
        segments.append(Text(codec.tokenizer.encode(segment)) if made else Image(codec.latents(segment[None])[0]))
    check_likeliest(task, params, codec, Document(tuple(segments)))


def test_a_sample_is_the_same_in_any_company(story):
    task, params, sample = story
    follows = "any", "text", "image", "any"
    others = [Request(prompt_of(text, tiny_codec()), f, 5, 9) for text, f in zip(PROMPTS, follows, strict=True)]
    requests = [*others[:2], Request(prompt_of("ab", tiny_codec())), *others[2:]]
    same = generate(task, params, tiny_codec(), requests, writing=GREEDY, max_images=2)[2]
    assert same.text == sample.text
    for one, other in zip(same.images, sample.images, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_draws_hang_on_seed_and_number_alone(codes):
    task, params = codes
    documents = [prompt_of(text, code_codec()) for text in PROMPTS]
    how = Writing(max_tokens=10, temperature=1.5, top_k=12, top_p=0.95, min_p=0.01)

    def asked(requests):
        return generate(task, params, code_codec(), requests, writing=how)

    together = asked([Request(d, "any", 7, n) for n, d in enumerate(documents)])
    (alone,) = asked([Request(documents[2], "any", 7, 2)])
    assert alone.text == together[2].text
    for one, other in zip(alone.images, together[2].images, strict=True):
        np.testing.assert_array_equal(one, other)
    texts = {asked([Request(documents[2], "text", s, n)])[0].text for s, n in ((7, 2), (8, 2), (7, 3))}
    assert len(texts) == 3


def test_it_is_told_as_it_comes(story):
    task, params, sample = story
    request = Request(prompt_of("ab", tiny_codec()))
    events = list(stream(task, params, tiny_codec(), [request], writing=GREEDY, max_images=2, previews=2, chunk=3))
    assert "".join(e.text for e in events if isinstance(e, Wrote)) == sample.text
    assert max(len(e.text) for e in events if isinstance(e, Wrote)) <= 3
    drawn = [e for e in events if isinstance(e, Drew | Draws)]
    assert [(type(e), getattr(e, "done", 6)) for e in drawn] == [(Draws, 2), (Draws, 4), (Drew, 6)] * 2
    assert events[-1] == Ended(0, "images")
    for event, image in zip(drawn[2::3], sample.images, strict=True):
        np.testing.assert_allclose(event.image, image, atol=1e-5)
    errors = [np.abs(event.image - sample.images[0]).mean() for event in drawn[:3]]
    assert errors == sorted(errors, reverse=True)


def test_a_stop_string_ends_the_text_before_it_whatever_the_pieces():
    task, params = made(LATENTS)
    request = Request(prompt_of("abc", tiny_codec()), "text")
    (whole,) = generate(task, params, tiny_codec(), [request], writing=Writing(max_tokens=12))
    stop = whole.text[4:7]
    for chunk in (1, 2, 16):
        events = list(
            stream(task, params, tiny_codec(), [request], writing=Writing(12, stop=("@", stop)), chunk=chunk)
        )
        text = "".join(e.text for e in events if isinstance(e, Wrote))
        assert text == whole.text[: whole.text.index(stop)]
        assert events[-1] == Ended(0, "stop")


def test_each_guidance_is_what_it_says():
    task, params = made(LATENTS)
    document = Document((IMAGES[0], Text(np.array([3, 4]))))

    def drawn(document=document, **how):
        sampling = task.config.sampling_with(**how)
        return generate(task, params, tiny_codec(), [Request(document, "image")], sampling)[0].images[0]

    plain, text_alone = drawn(guidance=1.0), drawn(Document(document.segments[1:]), guidance=1.0)
    image_alone, nothing = drawn(Document((IMAGES[0],)), guidance=1.0), drawn(Document(()), guidance=1.0)
    assert min(np.abs(plain - other).max() for other in (text_alone, image_alone, nothing)) > 1e-2
    close = dict(atol=1e-4)
    np.testing.assert_allclose(drawn(guidance=0.0), nothing, **close)
    np.testing.assert_allclose(drawn(guidance=0.0, image_guidance=1.0), image_alone, **close)
    np.testing.assert_allclose(drawn(guidance=1.0, image_guidance=1.0), plain, **close)
    np.testing.assert_allclose(drawn(guidance=2.0, image_guidance=2.0), drawn(guidance=2.0), **close)
    np.testing.assert_allclose(drawn(guidance=2.0, guidance_interval=(0.0, 0.0)), plain, **close)
    for interval in ((0.3, 0.6), (1.0, 1.0)):  # the second: where drawing begins
        some = drawn(guidance=2.0, guidance_interval=interval)
        assert min(np.abs(some - other).max() for other in (plain, drawn(guidance=2.0))) > 1e-2
    assert np.abs(drawn(guidance=3.0, guidance_rescale=1.0) - drawn(guidance=3.0)).max() > 1e-2


def test_what_cannot_be_is_refused():
    task, params = made(LATENTS)
    codec = tiny_codec()

    def ask(request, **how):
        return generate(task, params, codec, [request], **how)

    with pytest.raises(ConfigError, match="shorten the prompt"):
        ask(Request(prompt_of("a" * 60, codec), "image"))
    with pytest.raises(ConfigError, match="shorten the prompt"):
        ask(Request(prompt_of("a" * 64, codec), "text"))
    with pytest.raises(ConfigError, match="follow is 'images'; did you mean 'image'"):
        ask(Request(prompt_of("a", codec), "images"))
    with pytest.raises(ConfigError, match="this is no such prompt"):
        ask(Request(prompt_of("a", codec), "image"), sampling=task.config.sampling_with(image_guidance=1.5))
    full = ask(Request(prompt_of("a" * 50, codec), "text"))[0]
    assert full.reason in ("end", "length")
    assert len(full.text) <= 64 - 51


GREEDY = Writing(max_tokens=20)


def image_keys(seed, count, number):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), i), number))(
        np.arange(count)
    )


def two_images(config, codec):
    """A task, weights with which texts and two images follow "ab", and what they are."""
    for seed in range(50):
        task, params = made(config, seed)
        (sample,) = generate(task, params, codec, [Request(prompt_of("ab", codec))], writing=GREEDY, max_images=2)
        if len(sample.images) == 2 and len(sample.text) > 4:
            return task, params, sample
    raise AssertionError("none of these weights draws twice")


def check_likeliest(task, params, codec, document):
    """Every token after the prompt is the likeliest after what stands before it, in one pass over the whole row."""
    special, config = codec.special, task.config.model
    rows, lengths = rows_of([document], task.config, codec)
    x, _ = embed_at(task.model.bind(params), rows)
    hidden, _ = task.model.bind(params).trunk(x, rows.spans, rows.positions)
    logits = np.array(task.model.bind(params).text_logits(hidden))[0, : lengths[0] - 1]
    follows = rows.tokens[0, 1 : lengths[0]]
    entry = np.arange(config.padded_vocabulary)
    written = (entry < config.vocabulary) | np.isin(entry, (special.eos, special.boi))
    coded = (entry >= config.first_code) & (entry < config.entries)
    checked = 0
    for place in range(2, len(follows)):
        code = rows.patch[0, place + 1] >= 0
        if follows[place] == special.eoi or (code and config.images == "latents"):
            continue
        allowed = coded if code else written
        assert np.argmax(np.where(allowed, logits[place], -np.inf)) == follows[place], place
        checked += 1
    assert checked > 4
