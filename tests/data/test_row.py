"""One row, element by element. An image takes four patches; BOS is 20, EOS 21, BOI 22, EOI 23, PAD 24."""

import dataclasses

import jax
import numpy as np
import pytest

from helpers import random_image, random_text, special, tiny_config
from transfusion_jax.data.batch import Batch, abstract_batch
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.model.spans import check_spans

BOS, EOS, BOI, EOI, PAD = 20, 21, 22, 23, 24
PATCHES = 4


def test_a_row_by_hand():
    first, second, third = (image(value) for value in (1, 2, 3))
    pieces = [
        Piece(Document((text(3, 4), first)), 0, 9, source=0),
        Piece(Document((text(5, 6, 7, 8),)), 2, 3, source=1),  # the row before ended with BOS and 5
        Piece(Document((second, third)), 0, 13, source=0),  # two images side by side
        Piece(Document((text(9, 10, 11, 12),)), 0, 3, source=1),  # the next row goes on with 11
    ]
    row = assemble(7, pieces, row_config(context_length=31), special())

    patches = [PAD] * PATCHES
    image_only = [BOI, *patches, EOI]
    expect(row.tokens, [BOS, 3, 4, *image_only], [6, 7, 8], [BOS, *image_only * 2], [BOS, 9, 10], [PAD] * 3)
    shifted = [3, 4, *image_only, EOS], [7, 8, EOS], [*image_only * 2, EOS], [9, 10, 11], [PAD] * 3
    expect(row.targets, *shifted)
    unpredicted = [0, 0, 0, 0, 0, 1]  # what follows BOI is a patch, and a patch predicts no token
    expect(row.token_weight, [1, 1, 1, *unpredicted], [1] * 3, [1, *unpredicted * 2], [1] * 3, [0] * 3)
    expect(row.positions, range(9), range(3), range(13), range(3), [0, 0, 0])
    expect(row.span_start, [0] * 9, [9] * 3, [12] * 13, [25] * 3, [28, 29, 30])
    ends = [13, 14, 18, 18, 18, 18, 19, 20, 24, 24, 24, 24, 25]
    expect(row.span_end, [1, 2, 3, 4, 8, 8, 8, 8, 9], [10, 11, 12], ends, [26, 27, 28], [29, 30, 31])
    slots = [-1, -1, 1, 1, 1, 1, -1, -1, 2, 2, 2, 2, -1]
    expect(row.image_slot, [-1, -1, -1, -1, 0, 0, 0, 0, -1], [-1] * 3, slots, [-1] * 6)
    expect(row.patch_index, [0, 0, 0, 0, 0, 1, 2, 3, 0], [0] * 3, [0, 0, 0, 1, 2, 3, 0, 0, 0, 1, 2, 3, 0], [0] * 6)
    expect(row.source, [0] * 9, [1] * 3, [0] * 13, [1] * 3, [-1] * 3)
    expect(row.latents[:, 0, 0, 0], [1, 2, 3, 0])
    expect(row.image_weight, [1, 1, 1, 0])
    expect(row.timestep_limit, [1000, 1000, 1000, 0])
    expect(row.image_first, [False] * 4)
    expect(row.image_source, [0, 0, 0, -1])
    assert row.row == 7


def test_an_image_at_the_rows_start_and_at_its_end():
    pieces = [Piece(Document((image(1),)), 0, 7, 0), Piece(Document((text(1, 2), image(2))), 0, 9, 0)]
    row = assemble(0, pieces, row_config(context_length=16), special())
    expect(row.image_slot, [-1, -1, 0, 0, 0, 0, -1], [-1, -1, -1, -1, 1, 1, 1, 1, -1])
    expect(row.span_end[[1, 2, 5, 6]], [2, 6, 6, 7])
    expect(row.span_end[[10, 11, 14, 15]], [11, 15, 15, 16])
    expect(row.targets[[6, 15]], [EOS, EOS])
    expect(row.token_weight[[6, 15]], [1, 1])


def test_an_interleaved_document_keeps_its_order_whatever_is_drawn():
    segments = (image(1), text(1, 2), image(2), text(3), image(3))
    document = Document(segments)
    for number in range(20):
        config = row_config(image_first=0.5, caption_dropout=0.5)
        row = assemble(number, [Piece(document, 0, document.length(PATCHES), 0)], config, special())
        expect(row.tokens[row.image_slot < 0][:10], [BOS, BOI, EOI, 1, 2, BOI, EOI, 3, BOI, EOI])
        expect(row.latents[:3, 0, 0, 0], [1, 2, 3])
        expect(row.image_first[:3], [True, False, False])
        expect(row.timestep_limit[:3], [500, 1000, 1000])
        assert row.token_weight.sum() == 1 + 3 + 3  # BOS, the words, the EOIs


@pytest.mark.parametrize("segments", ["ti", "it"])
def test_an_image_first_pair_is_noised_up_to_its_own_limit(segments):
    pair = {"t": text(1, 2), "i": image(1)}
    document = Document(tuple(pair[s] for s in segments))
    row = assemble(0, [Piece(document, 0, 9, 2)], row_config(image_first=1, caption_dropout=1), special())
    expect(row.tokens[:9], [BOS, BOI, PAD, PAD, PAD, PAD, EOI, 1, 2])
    expect(row.targets[6:9], [1, 2, EOS])
    expect(row.token_weight[:9], [1, 0, 0, 0, 0, 0, 1, 1, 1])  # an image-first pair keeps its caption
    assert (row.image_first[0], row.timestep_limit[0], row.image_source[0]) == (True, 500, 2)


@pytest.mark.parametrize("segments", ["ti", "it"])
def test_a_dropped_caption_leaves_padding_and_no_text_loss(segments):
    pair = {"t": text(1, 2), "i": image(1)}
    document = Document(tuple(pair[s] for s in segments))
    pieces = [Piece(document, 0, 9, 0), Piece(Document((text(5),)), 0, 2, 1)]
    row = assemble(0, pieces, row_config(image_first=0, caption_dropout=1), special())
    expect(row.tokens[:11], [BOS, BOI, PAD, PAD, PAD, PAD, EOI, PAD, PAD, BOS, 5])
    expect(row.token_weight[:11], [0] * 9, [1, 1])
    expect(row.span_start[:11], [0] * 7, [7, 8], [9, 9])
    expect(row.span_end[:11], [1, 2, 6, 6, 6, 6, 7], [8, 9], [10, 11])
    expect(row.source[:11], [0] * 7, [-1, -1], [1, 1])
    assert (row.image_weight[0], row.image_first[0], row.timestep_limit[0]) == (1, False, 1000)


def test_orders_and_dropped_captions_come_in_their_shares():
    config = row_config(image_first=0.3, caption_dropout=0.2, context_length=40)
    pieces = [Piece(Document((text(1, 2), image(k))), 0, 9, 0) for k in range(4)]
    first, dropped = [], []
    for number in range(1500):
        row = assemble(number, pieces, config, special())
        first.append(row.image_first)
        dropped.append(row.source[[8, 17, 26, 35]] == -1)
    first, dropped = np.array(first), np.array(dropped)
    assert first.mean() == pytest.approx(0.3, abs=0.03)
    assert dropped.mean() == pytest.approx(0.7 * 0.2, abs=0.025)
    assert not np.any(first & dropped)
    for slot in range(4):  # each pair draws for itself
        assert first[:, slot].mean() == pytest.approx(0.3, abs=0.06)
    assert np.abs(np.corrcoef(first.T) - np.eye(4)).max() < 0.12
    assert np.abs(np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1]) < 0.12  # and each row


def test_a_row_is_a_function_of_seed_and_row():
    pieces = [Piece(Document((text(1, 2), image(k))), 0, 9, 0) for k in range(4)]

    def orders(seed, state):
        np.random.seed(state)
        config = dataclasses.replace(row_config(image_first=0.5, caption_dropout=0.5, context_length=40), seed=seed)
        return [assemble(number, pieces, config, special()) for number in range(20)]

    for one, other in zip(orders(3, 0), orders(3, 1), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert not np.array_equal([r.tokens for r in orders(3, 0)], [r.tokens for r in orders(4, 0)])
    assert all(np.all(piece.document.segments[1].latent == k) for k, piece in enumerate(pieces))


def test_a_row_has_the_shapes_and_types_of_a_batch():
    config = row_config()
    for pieces in ([], [Piece(Document((text(1), image(1))), 0, 8, 0)]):
        row = assemble(0, pieces, config, special())
        for field in dataclasses.fields(Batch):
            actual, expected = np.asarray(getattr(row, field.name)), getattr(abstract_batch(config, 1), field.name)
            assert ((1, *actual.shape), actual.dtype) == (expected.shape, expected.dtype), field.name


def test_an_empty_row_attends_to_nothing_but_itself():
    row = assemble(0, [], row_config(), special())
    expect(row.span_start, range(48))
    expect(row.span_end, range(1, 49))
    assert set(row.tokens) == {PAD}
    assert row.token_weight.sum() == row.image_weight.sum() == 0


@pytest.mark.parametrize(("image_first", "dropout"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("seed", range(15))
def test_random_rows_agree_with_one_element_after_the_other(seed, image_first, dropout):
    config = row_config(image_first=image_first, caption_dropout=dropout, max_images=16, context_length=90)
    pieces = random_pieces(np.random.default_rng(seed), 90)
    row = assemble(seed, pieces, config, special())
    check_spans(row.spans)
    expected = slowly(pieces, 90, image_first, dropout)
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(row, name), values, err_msg=name)


def slowly(pieces, length, image_first, dropout):
    """The fields of a row that stand for elements, by the words of the contract."""
    fields = {name: [] for name in ("tokens", "targets", "token_weight", "positions", "span_start", "span_end")}
    fields |= {"image_slot": [], "patch_index": [], "source": []}
    at = slot = 0
    for piece in pieces:
        segments = list(piece.document.segments)
        dropped = False
        if sorted(type(s).__name__ for s in segments) == ["Image", "Text"]:
            segments.sort(key=lambda s: isinstance(s, Text) == bool(image_first))
            dropped = bool(dropout) and not image_first
            segments = [s for s in segments if isinstance(s, Image) or not dropped]
        elements = [(BOS, None, None)]  # token, image, patch
        for segment in segments:
            if isinstance(segment, Text):
                elements += [(int(token), None, None) for token in segment.tokens]
                continue
            elements += [(BOI, None, None), *((PAD, slot, patch) for patch in range(PATCHES)), (EOI, None, None)]
            slot += 1
        for place in range(piece.start, piece.start + piece.length):
            i = at + place - piece.start
            if place >= len(elements):  # where the caption was planned
                values = (PAD, PAD, 0, 0, i, i + 1, -1, 0, -1)
            else:
                token, image_slot, patch = elements[place]
                target = elements[place + 1][0] if place + 1 < len(elements) else EOS
                is_patch = image_slot is not None
                weight = 0 if is_patch or token == BOI or dropped else 1
                end = i + PATCHES - patch if is_patch else i + 1
                values = (token, target, weight, place - piece.start, at, end)
                values += (image_slot, patch, piece.source) if is_patch else (-1, 0, piece.source)
            for column, value in zip(fields.values(), values, strict=True):
                column.append(value)
        at += piece.length
    for i in range(at, length):
        for column, value in zip(fields.values(), (PAD, PAD, 0, 0, i, i + 1, -1, 0, -1), strict=True):
            column.append(value)
    return fields


def random_pieces(random, length):
    """Whole documents with images and cut texts, side by side, until a row is full or nearly so."""
    pieces, room = [], length
    while room > 0 and random.random() < 0.95:
        kind = random.choice(["text", "pair", "interleaved", "image"])
        if kind == "text":
            document = Document((random_text(random, 0, 20),))
            start = int(random.integers(0, document.length(PATCHES)))
            taken = int(random.integers(1, document.length(PATCHES) - start, endpoint=True))
        else:
            segments = {
                "pair": lambda: (random_text(random, 0, 6), random_image(random)),
                "interleaved": lambda: (random_image(random), random_text(random, 0, 4), random_image(random)),
                "image": lambda: (random_image(random),),
            }[kind]()
            document = Document(segments[:: random.choice([-1, 1])])
            start, taken = 0, document.length(PATCHES)
        if taken > room:
            break
        pieces.append(Piece(document, start, taken, int(random.integers(0, 5))))
        room -= taken
    return pieces


def expect(actual, *parts):
    np.testing.assert_array_equal(
        actual, [value for part in parts for value in (part if np.iterable(part) else [part])]
    )


def row_config(**data):
    defaults = dict(image_first=0.0, caption_dropout=0.0)
    return tiny_config(**{f"data__{name}": value for name, value in (defaults | data).items()})


def text(*tokens):
    return Text(np.array(tokens, np.int32))


def image(value):
    return Image(np.full((4, 4, 2), value, np.float32))


def test_segments_without_a_loss_are_context_and_their_images_are_clean():
    """An editing triple: neither the image to edit nor the instruction is learnt, the result is."""
    triple = Document((Image(image(1).latent, loss=False), Text(text(3, 4).tokens, loss=False), image(2)))
    row = assemble(0, [Piece(triple, 0, 15, 0)], row_config(context_length=16, image_first=1.0), special())
    expect(row.tokens[row.image_slot < 0], [BOS, BOI, EOI, 3, 4, BOI, EOI, PAD])
    expect(row.token_weight[row.image_slot < 0], [0, 0, 0, 0, 1, 0, 1, 0])  # BOI after the instruction, then EOS
    expect(row.image_weight[:2], [0, 1])
    expect(row.timestep_limit[:2], [0, 1000])


def test_a_text_without_a_loss_leaves_what_stands_around_it():
    segments = (text(1, 2), Text(text(3, 4).tokens, loss=False), text(5))
    row = assemble(0, [Piece(Document(segments), 0, 6, 0)], row_config(context_length=16), special())
    expect(row.targets[:6], [1, 2, 3, 4, 5, EOS])
    expect(row.token_weight[:6], [1, 1, 0, 0, 1, 1])


def test_a_pair_that_is_context_in_part_keeps_its_order_and_its_caption():
    pair = Document((text(1, 2), Image(image(1).latent, loss=False)))
    for number in range(20):
        config = row_config(context_length=16, image_first=0.5, caption_dropout=0.5)
        row = assemble(number, [Piece(pair, 0, 9, 0)], config, special())
        expect(row.tokens[:4], [BOS, 1, 2, BOI])
