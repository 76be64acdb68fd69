"""Prompts as rows. An image takes four patches, six elements with its marks; a text takes one per byte."""

import jax
import numpy as np
import pytest

from helpers import latents, slots, tiny_config
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import ConfigError
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.store.latent_stats import LatentStatistics
from transfusion_jax.data.tokenizer import ByteTokenizer, SpecialTokens
from transfusion_jax.generation.prompt import ROUND_TO, before_image, images_of, prompt_of, rows_of
from transfusion_jax.kernels.spans import check_spans

CONFIG = tiny_config(model__vocabulary=256, data__context_length=80)
SPECIAL = SpecialTokens.after(256)
CODEC = Codec(ByteTokenizer(), SPECIAL, Identity(), LatentStatistics(np.zeros(2), np.ones(2)))
PAD = SPECIAL.pad


def test_a_prompt_stands_before_the_place_to_draw_in():
    rows = rows_before_images(["ab"])
    marked = [SPECIAL.bos, ord("a"), ord("b"), SPECIAL.boi, PAD, PAD, PAD, PAD, SPECIAL.eoi]
    assert rows.tokens[0].tolist() == marked + [PAD] * (ROUND_TO - 9)
    assert rows.patch[0].tolist() == [-1] * 4 + [0, 1, 2, 3] + [-1] * (ROUND_TO - 8)
    assert rows.media["images"].element[0].tolist() == [4, 5, 6, 7]
    assert rows.media["images"].item[0].tolist() == [0, 0, 0, 0]
    assert rows.positions[0].tolist() == list(range(ROUND_TO))
    assert rows.span_start.max() == 0
    assert rows.span_end[0, :9].tolist() == [1, 2, 3, 4, 8, 8, 8, 8, 9]
    assert latents(rows, CONFIG).shape == (1, 1, *CONFIG.model.latent_shape)
    assert not latents(rows, CONFIG).any()
    assert not rows.media["images"].weight.any()


def test_the_other_branch_of_guidance_is_the_image_alone():
    rows = rows_before_images(["ab", "", "a longer prompt than that", ""])
    for branch in (1, 3):
        image = [SPECIAL.bos, SPECIAL.boi, PAD, PAD, PAD, PAD, SPECIAL.eoi]
        assert rows.tokens[branch].tolist() == image + [PAD] * (rows.tokens.shape[1] - 7)
        assert rows.span_end[branch, :7].tolist() == [1, 2, 6, 6, 6, 6, 7]
    assert rows.tokens.shape == (4, ROUND_TO)
    check_spans(rows.spans)


def test_a_row_does_not_depend_on_the_prompts_beside_it():
    alone, beside = rows_before_images(["ab"]), rows_before_images(["ab", "b" * 60, ""])
    assert (alone.tokens.shape[1], beside.tokens.shape[1]) == (32, 80)  # rounded up, and never beyond the context
    for name in ("tokens", "patch", "positions", "span_start", "span_end"):
        np.testing.assert_array_equal(getattr(beside, name)[0, :32], getattr(alone, name)[0], err_msg=name)


@pytest.mark.parametrize("prompt", ["x" * 73, "é" * 36 + "x"])
def test_the_longest_prompt_fits_and_one_more_byte_does_not(prompt):
    assert rows_before_images([prompt]).tokens.shape == (1, 80)
    with pytest.raises(ConfigError, match="take 81 elements, and the model's context is 80: shorten the prompt"):
        rows_before_images(["short", prompt + "x"])


def test_text_continues_its_document_wherever_that_ends():
    image = Image(np.ones(CONFIG.model.latent_shape, np.float32))
    documents = [Document((image,)), Document((text("hello"), image, image, text("x"))), Document(())]
    rows, lengths = rows_of(documents, CONFIG, CODEC, room=20)
    assert lengths.tolist() == [7, 19, 1]
    assert rows.tokens.shape == (3, 64)
    check_spans(rows.spans)
    for row, length in enumerate(lengths):
        after = np.arange(length, 64)
        assert set(rows.tokens[row, length:]) == {PAD}
        np.testing.assert_array_equal(rows.span_start[row, after], 0)  # it sees the whole document
        np.testing.assert_array_equal(rows.span_end[row, after], after + 1)
        np.testing.assert_array_equal(rows.positions[row], np.arange(64))
    assert (slots(rows) >= 0).sum(axis=1).tolist() == [4, 8, 0]
    images = latents(rows, CONFIG)
    assert images.shape[:2] == (3, 2)
    assert images.any(axis=(2, 3, 4)).tolist() == [[True, False], [True, True], [False, False]]


def test_text_without_room_is_refused():
    documents = [Document((text("x" * 30),))]
    assert rows_of(documents, CONFIG, CODEC, room=49)[0].tokens.shape == (1, 80)
    with pytest.raises(ConfigError, match="take 81 elements"):
        rows_of(documents, CONFIG, CODEC, room=50)


def test_prompts_bear_no_loss_but_are_whole_batches():
    rows = rows_before_images(["ab", ""])
    assert {leaf.shape[0] for leaf in jax.tree.leaves(rows)} == {2}
    assert rows.row.tolist() == [0, 1]


def test_what_stands_before_an_image_ends_with_its_mark():
    image = Image(np.ones(CONFIG.model.latent_shape, np.float32))
    document = Document((text("ab"), image))
    rows, lengths = rows_of(
        [before_image(d, CODEC) for d in (document, images_of(document), Document(()))], CONFIG, CODEC
    )
    assert lengths.tolist() == [10, 8, 2]
    assert [rows.tokens[row, length - 1] for row, length in enumerate(lengths)] == [SPECIAL.boi] * 3
    assert rows.tokens[1, :8].tolist() == [SPECIAL.bos, SPECIAL.boi, PAD, PAD, PAD, PAD, SPECIAL.eoi, SPECIAL.boi]
    assert prompt_of("", CODEC) == Document(())


def rows_before_images(prompts):
    blank = Image(np.zeros(CONFIG.model.latent_shape, np.float32))
    documents = [Document((*prompt_of(prompt, CODEC).segments, blank)) for prompt in prompts]
    return rows_of(documents, CONFIG, CODEC)[0]


def text(string):
    return Text(CODEC.tokenizer.encode(string))
