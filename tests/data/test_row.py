"""One row, element by element. An image takes four patches; BOS is 20, EOS 21, BOI 22, EOI 23, PAD 24."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from helpers import random_text, special, tiny_config
from transfusion_jax.config import ConfigError
from transfusion_jax.data.batch import abstract_batch, stack
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.kernels.spans import check_spans

BOS, EOS, BOI, EOI, PAD = 20, 21, 22, 23, 24
PATCHES = 4
SHAPES = dict(model__latent_shape=(4, 6, 2), model__max_side=8, model__rope_sections=(2, 1, 1))


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
    patch = [-1, -1, 4, 5, 6, 7, -1, -1, 8, 9, 10, 11, -1]
    expect(row.patch, [-1, -1, -1, -1, 0, 1, 2, 3, -1], [-1] * 3, patch, [-1] * 6)
    expect(row.source, [0] * 9, [1] * 3, [0] * 13, [1] * 3, [-1] * 3)
    media = row.media["images"]
    expect(media.patches[:, 0], [1] * 4, [2] * 4, [3] * 4, [0] * 4)
    expect(media.item, [0] * 4, [1] * 4, [2] * 4, [-1] * 4)
    expect(media.coords[:12].reshape(-1), [0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 1] * 3)
    expect(media.element, range(4, 8), range(14, 18), range(20, 24), [31] * 4)
    expect(media.grid.reshape(-1), [1, 2, 2] * 3, [0] * 3)
    expect(media.weight, [1, 1, 1, 0])
    expect(media.timestep_limit, [1000, 1000, 1000, 0])
    expect(media.comes_first, [False] * 4)
    expect(media.source, [0, 0, 0, -1])
    assert row.row == 7


def test_images_of_two_shapes_by_hand():
    """A wide image of 1×3 patches and a tall one of 2×1, positions on three axes."""
    pieces = [
        Piece(Document((text(3), image(1, 2, 6), text(4))), 0, 8, 0),
        Piece(Document((image(2, 4, 2),)), 0, 5, 1),
    ]
    row = assemble(7, pieces, row_config(context_length=16, max_patches=8, **SHAPES), special())
    expect(row.tokens, [BOS, 3, BOI, PAD, PAD, PAD, EOI, 4], [BOS, BOI, PAD, PAD, EOI], [PAD] * 3)
    time, height, width = row.positions.T
    expect(time, [0, 1, 2, 3, 3, 3, 6, 7], [0, 1, 2, 2, 4], [0] * 3)
    expect(height, [0, 1, 2, 3, 3, 3, 6, 7], [0, 1, 2, 3, 4], [0] * 3)
    expect(width, [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 2, 4], [0] * 3)
    expect(row.span_end, [1, 2, 3, 6, 6, 6, 7, 8], [9, 10, 12, 12, 13], [14, 15, 16])
    expect(row.patch, [-1, -1, -1, 0, 1, 2, -1, -1], [-1, -1, 3, 4, -1], [-1] * 3)
    media = row.media["images"]
    expect(media.patches[:, 0], [1] * 3, [2] * 2, [0] * 3)
    expect(media.item, [0] * 3, [1] * 2, [-1] * 3)
    expect(media.coords[:5].reshape(-1), [0, 0, 0, 0, 0, 1, 0, 0, 2], [0, 0, 0, 0, 1, 0])
    expect(media.element, [3, 4, 5], [10, 11], [16] * 3)
    expect(media.grid[:2].reshape(-1), [1, 1, 3], [1, 2, 1])
    expect(media.source, [0, 1, -1, -1])


def test_marks_of_shapes_by_hand():
    """The same images: behind BOI stand their rows and their columns of patches, 25 for one, 26 for two."""
    pieces = [
        Piece(Document((text(3), image(1, 2, 6), text(4))), 0, 10, 0),
        Piece(Document((image(2, 4, 2),)), 0, 7, 1),
    ]
    config = row_config(context_length=20, max_patches=8, model__shape_marks=True, **SHAPES)
    row = assemble(7, pieces, config, special())
    expect(row.tokens, [BOS, 3, BOI, 25, 27, PAD, PAD, PAD, EOI, 4], [BOS, BOI, 26, 25, PAD, PAD, EOI], [PAD] * 3)
    expect(row.targets, [3, BOI, 25, 27, PAD, PAD, PAD, EOI, 4, EOS], [BOI, 26, 25, PAD, PAD, EOI, EOS], [PAD] * 3)
    expect(row.token_weight, [1, 1, 1, 1, 0, 0, 0, 0, 1, 1], [1, 1, 1, 0, 0, 0, 1], [0] * 3)
    time, height, width = row.positions.T
    expect(time, [0, 1, 2, 3, 4, 5, 5, 5, 8, 9], [0, 1, 2, 3, 4, 4, 6], [0] * 3)
    expect(height, [0, 1, 2, 3, 4, 5, 5, 5, 8, 9], [0, 1, 2, 3, 4, 5, 6], [0] * 3)
    expect(width, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 4, 6], [0] * 3)
    expect(row.span_end, [1, 2, 3, 4, 5, 8, 8, 8, 9, 10], [11, 12, 13, 14, 16, 16, 17], [18, 19, 20])
    expect(row.patch, [-1] * 5, [0, 1, 2, -1, -1], [-1] * 4, [3, 4, -1], [-1] * 3)


def test_a_dropped_caption_leaves_the_shape_to_learn():
    """What remains teaches guidance's other branch, and which shapes images have; not that they lack captions."""
    config = row_config(max_patches=8, model__shape_marks=True, caption_dropout=1.0, **SHAPES)
    row = assemble(7, [Piece(Document((text(3), image(1, 2, 6))), 0, 9, 0)], config, special())
    expect(row.tokens[:8], [BOS, BOI, 25, 27, PAD, PAD, PAD, EOI])
    expect(row.token_weight[:8], [0, 1, 1, 0, 0, 0, 0, 0])


def test_a_patch_holds_its_square_of_the_image():
    wide = np.arange(4 * 6 * 2, dtype=np.float32).reshape(4, 6, 2)
    config = row_config(max_patches=8, **SHAPES)
    row = assemble(0, [Piece(Document((Image(wide),)), 0, 9, 0)], config, special())
    for number, (y, x) in enumerate(itertools.product(range(2), range(3))):
        square = wide[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        np.testing.assert_array_equal(row.media["images"].patches[number].reshape(2, 2, 2), square)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4, 5), "which model.patch_size 2 does not divide"),
        ((8, 8), "allows 24 places"),
        ((2, 10), "a side of 8"),
        ((0, 4), "allows 24 places"),
    ],
)
def test_an_image_that_the_model_does_not_take_is_refused(shape, words):
    document = Document((Image(np.zeros((*shape, 2), np.float32)),))
    with pytest.raises(ConfigError, match=words):
        assemble(0, [Piece(document, 0, 9, 0)], row_config(**SHAPES), special())
    with pytest.raises(ConfigError, match="images of several shapes need"):
        assemble(0, [Piece(document, 0, 9, 0)], row_config(), special())


def test_an_image_at_the_rows_start_and_at_its_end():
    pieces = [Piece(Document((image(1),)), 0, 7, 0), Piece(Document((text(1, 2), image(2))), 0, 9, 0)]
    row = assemble(0, pieces, row_config(context_length=16), special())
    expect(row.patch, [-1, -1, 0, 1, 2, 3, -1], [-1, -1, -1, -1, 4, 5, 6, 7, -1])
    expect(row.span_end[[1, 2, 5, 6]], [2, 6, 6, 7])
    expect(row.span_end[[10, 11, 14, 15]], [11, 15, 15, 16])
    expect(row.targets[[6, 15]], [EOS, EOS])
    expect(row.token_weight[[6, 15]], [1, 1])


def test_an_interleaved_document_keeps_its_order_whatever_is_drawn():
    segments = (image(1), text(1, 2), image(2), text(3), image(3))
    document = Document(segments)
    for number in range(20):
        config = row_config(image_first=0.5, caption_dropout=0.5)
        row = assemble(number, [Piece(document, 0, document.length(config.model), 0)], config, special())
        expect(row.tokens[row.patch < 0][:10], [BOS, BOI, EOI, 1, 2, BOI, EOI, 3, BOI, EOI])
        expect(row.media["images"].patches[:12:4, 0], [1, 2, 3])
        expect(row.media["images"].comes_first[:3], [True, False, False])
        expect(row.media["images"].timestep_limit[:3], [500, 1000, 1000])
        assert row.token_weight.sum() == 1 + 3 + 3  # BOS, the words, the EOIs


@pytest.mark.parametrize("segments", ["ti", "it"])
def test_an_image_first_pair_is_noised_up_to_its_own_limit(segments):
    pair = {"t": text(1, 2), "i": image(1)}
    document = Document(tuple(pair[s] for s in segments))
    row = assemble(0, [Piece(document, 0, 9, 2)], row_config(image_first=1, caption_dropout=1), special())
    expect(row.tokens[:9], [BOS, BOI, PAD, PAD, PAD, PAD, EOI, 1, 2])
    expect(row.targets[6:9], [1, 2, EOS])
    expect(row.token_weight[:9], [1, 0, 0, 0, 0, 0, 1, 1, 1])  # an image-first pair keeps its caption
    media = row.media["images"]
    assert (media.comes_first[0], media.timestep_limit[0], media.source[0]) == (True, 500, 2)


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
    media = row.media["images"]
    assert (media.weight[0], media.comes_first[0], media.timestep_limit[0]) == (1, False, 1000)


def test_orders_and_dropped_captions_come_in_their_shares():
    config = row_config(image_first=0.3, caption_dropout=0.2, context_length=40)
    pieces = [Piece(Document((text(1, 2), image(k))), 0, 9, 0) for k in range(4)]
    first, dropped = [], []
    for number in range(1500):
        row = assemble(number, pieces, config, special())
        first.append(row.media["images"].comes_first)
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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(model__max_side=8),
        dict(model__max_side=8, model__rope_sections=(2, 1, 1)),
        dict(model__images="none", diffusion__image_first_limit=1000),
    ],
)
def test_a_row_has_the_shapes_and_types_of_a_batch(changes):
    config = row_config(**changes)
    abstract = abstract_batch(config, 1)
    pictured = [Piece(Document((text(1), image(1))), 0, 8, 0)] * (config.model.images != "none")
    for pieces in ([], pictured):
        batch = stack([assemble(0, pieces, config, special())])
        assert jax.tree.structure(batch) == jax.tree.structure(abstract)
        named = jax.tree_util.tree_leaves_with_path(abstract)
        for actual, (path, expected) in zip(jax.tree.leaves(batch), named, strict=True):
            assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), path


def test_an_empty_row_attends_to_nothing_but_itself():
    row = assemble(0, [], row_config(), special())
    expect(row.span_start, range(48))
    expect(row.span_end, range(1, 49))
    assert set(row.tokens) == {PAD}
    assert row.token_weight.sum() == row.media["images"].weight.sum() == 0


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("shapes", [((4, 4),), ((4, 4), (2, 8), (6, 2), (4, 6), (2, 2))])
@pytest.mark.parametrize(("image_first", "dropout"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("seed", range(8))
def test_random_rows_agree_with_one_element_after_the_other(seed, image_first, dropout, shapes, axes):
    several = SHAPES if len(shapes) > 1 else dict(model__rope_sections=(2, 1, 1))
    several = several | (dict(model__rope_sections=()) if axes == 1 else {})
    order = dict(image_first=image_first, caption_dropout=dropout)
    config = row_config(max_images=16, context_length=90, **order, **several)
    pieces = random_pieces(np.random.default_rng(seed), 90, shapes)
    row = assemble(seed, pieces, config, special())
    check_spans(row.spans)
    elements, patches, items = slowly(pieces, 90, image_first, dropout, axes)
    for name, values in elements.items():
        np.testing.assert_array_equal(getattr(row, name), values, err_msg=name)
    media = row.media["images"]
    for fields, empty in ((patches, dict(item=-1, element=90)), (items, dict(source=-1))):
        for name, values in fields.items():
            found, held = getattr(media, name), len(values)
            np.testing.assert_array_equal(found[:held], np.reshape(values, (held, *found.shape[1:])), err_msg=name)
            assert np.all(found[held:] == empty.get(name, 0)), name


def slowly(pieces, length, image_first, dropout, axes):
    """The fields of a row that stand for elements, for patches and for items, by the words of the contract."""
    names = ("tokens", "targets", "token_weight", "positions", "span_start", "span_end", "patch", "source")
    fields = {name: [] for name in names}
    patches = {name: [] for name in ("patches", "item", "coords", "element")}
    items = {name: [] for name in ("grid", "comes_first", "source")}
    at = 0
    for piece in pieces:
        segments = list(piece.document.segments)
        dropped = False
        if sorted(type(s).__name__ for s in segments) == ["Image", "Text"]:
            segments.sort(key=lambda s: isinstance(s, Text) == bool(image_first))
            dropped = bool(dropout) and not image_first
            segments = [s for s in segments if isinstance(s, Image) or not dropped]
        elements = [(BOS, (0, 0, 0), None)]  # token, position, and of a patch: its number and how many follow
        at_position, texts_before = 1, False
        for number, segment in enumerate(segments):
            if isinstance(segment, Text):
                elements += [(int(token), (at_position + i,) * 3, None) for i, token in enumerate(segment.tokens)]
                at_position += len(segment.tokens)
                texts_before = True
                continue
            rows, columns = (side // 2 for side in segment.latent.shape[:2])
            begin = at_position + 1
            elements.append((BOI, (at_position,) * 3, None))
            for y, x in itertools.product(range(rows), range(columns)):
                patches["item"].append(len(items["grid"]))
                patches["coords"].append((0, y, x))
                patches["element"].append(at + len(elements))
                square = segment.latent[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                patches["patches"].append([value for line in square for place in line for value in place])
                place = (begin, begin + y, begin + x) if axes == 3 else (begin + y * columns + x,) * 3
                left = rows * columns - y * columns - x
                elements.append((PAD, place, (len(patches["item"]) - 1, left)))
            at_position = begin + (max(rows, columns) if axes == 3 else rows * columns)
            elements.append((EOI, (at_position,) * 3, None))
            at_position += 1
            items["grid"].append((1, rows, columns))
            texts_after = any(isinstance(s, Text) for s in segments[number:])
            items["comes_first"].append(texts_after and not texts_before)
            items["source"].append(piece.source)
        base = np.array(elements[piece.start][1])
        for place in range(piece.start, piece.start + piece.length):
            i = at + place - piece.start
            if place >= len(elements):  # where the caption was planned
                values = (PAD, PAD, 0, (0, 0, 0), i, i + 1, -1, -1)
            else:
                token, position, patch = elements[place]
                target = elements[place + 1][0] if place + 1 < len(elements) else EOS
                weight = 0 if patch or token == BOI or dropped else 1
                end, number = (i + patch[1], patch[0]) if patch else (i + 1, -1)
                values = (token, target, weight, tuple(position - base), at, end, number, piece.source)
            for column, value in zip(fields.values(), values, strict=True):
                column.append(value)
        at += piece.length
    for i in range(at, length):
        for column, value in zip(fields.values(), (PAD, PAD, 0, (0, 0, 0), i, i + 1, -1, -1), strict=True):
            column.append(value)
    if axes == 1:
        fields["positions"] = [time for time, _, _ in fields["positions"]]
    return fields, patches, items


def random_pieces(random, length, shapes=((4, 4),)):
    """Whole documents with images and cut texts, side by side, until a row is full or nearly so."""
    pieces, room = [], length
    while room > 0 and random.random() < 0.95:
        kind = random.choice(["text", "pair", "interleaved", "image"])
        if kind == "text":
            document = Document((random_text(random, 0, 20),))
            start = int(random.integers(0, document.length(tiny_config().model)))
            taken = int(random.integers(1, document.length(tiny_config().model) - start, endpoint=True))
        else:

            def some_image():
                return Image(random.standard_normal((*shapes[random.integers(len(shapes))], 2)).astype(np.float32))

            segments = {
                "pair": lambda: (random_text(random, 0, 6), some_image()),
                "interleaved": lambda: (some_image(), random_text(random, 0, 4), some_image()),
                "image": lambda: (some_image(),),
            }[kind]()
            document = Document(segments[:: random.choice([-1, 1])])
            start, taken = 0, document.length(tiny_config().model)
        if taken > room:
            break
        pieces.append(Piece(document, start, taken, int(random.integers(0, 5))))
        room -= taken
    return pieces


def expect(actual, *parts):
    np.testing.assert_array_equal(
        actual, [value for part in parts for value in (part if np.iterable(part) else [part])]
    )


def row_config(**changes):
    defaults = dict(image_first=0.0, caption_dropout=0.0) | changes
    return tiny_config(**{name if "__" in name else f"data__{name}": value for name, value in defaults.items()})


def text(*tokens):
    return Text(np.array(tokens, np.int32))


def image(value, height=4, width=4):
    return Image(np.full((height, width, 2), value, np.float32))


def test_segments_without_a_loss_are_context_and_their_images_are_clean():
    """An editing triple: neither the image to edit nor the instruction is learnt, the result is."""
    triple = Document((Image(image(1).latent, loss=False), Text(text(3, 4).tokens, loss=False), image(2)))
    row = assemble(0, [Piece(triple, 0, 15, 0)], row_config(context_length=16, image_first=1.0), special())
    expect(row.tokens[row.patch < 0], [BOS, BOI, EOI, 3, 4, BOI, EOI, PAD])
    expect(row.token_weight[row.patch < 0], [0, 0, 0, 0, 1, 0, 1, 0])  # BOI after the instruction, then EOS
    expect(row.media["images"].weight[:2], [0, 1])
    expect(row.media["images"].timestep_limit[:2], [0, 1000])


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
