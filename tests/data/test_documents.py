from dataclasses import replace

import numpy as np
import pytest

from helpers import random_image, random_text, tiny_config
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source, Text
from transfusion_jax.data.synthetic import SyntheticDocuments

IMAGE = Image(np.zeros((4, 4, 2), np.float32))
CAPTION = Text(np.arange(3))


def test_a_document_counts_its_elements():
    document = Document((text(3), IMAGE, IMAGE, text(0), text(2)))
    assert (document.images, document.text_length) == (2, 5)
    assert document.length(tiny_config().model) == 1 + 5 + 2 * (4 + 2)
    assert document.length(tiny_config(model__max_side=8, model__shape_marks=True).model) == 1 + 5 + 2 * (4 + 4)
    assert Document(()).length(tiny_config().model) == 1


def test_the_hash_of_an_image_is_of_its_shape_and_its_values():
    wide, high = (Image(np.zeros(shape, np.float32)) for shape in ((2, 8, 2), (8, 2, 2)))
    assert wide.hash != high.hash == Image(np.zeros((8, 2, 2), np.float32), loss=False).hash


@pytest.mark.parametrize("order", [1, -1])
def test_a_pair_is_a_caption_and_an_image_in_whichever_order(order):
    assert Document((CAPTION, IMAGE)[::order]).pair == (CAPTION, IMAGE)
    with pytest.raises(ValueError, match="unpack"):
        _ = Document((CAPTION, CAPTION)).pair


@pytest.mark.parametrize(
    ("segments", "pair"),
    [
        ((CAPTION, IMAGE), True),
        ((IMAGE, CAPTION), True),
        ((IMAGE,), False),
        ((CAPTION,), False),
        ((IMAGE, IMAGE), False),
        ((CAPTION, CAPTION), False),
        ((CAPTION, IMAGE, CAPTION), False),
        ((CAPTION, IMAGE, IMAGE), False),
        ((), False),
        ((replace(CAPTION, loss=False), IMAGE), False),
        ((CAPTION, replace(IMAGE, loss=False)), False),
    ],
)
def test_only_one_caption_with_one_image_is_a_pair(segments, pair):
    assert Document(segments).is_pair == pair


def test_a_corpus_counts_through_its_sources():
    sizes = (3, 0, 2, 0, 4)
    sources = [
        Source(f"s{i}", DocumentList([Document((text(10 * i + n),)) for n in range(size)]))
        for i, size in enumerate(sizes)
    ]
    corpus = Corpus(tuple(sources))
    assert len(corpus) == 9
    numbers = range(len(corpus))
    assert [corpus.find(n)[0] for n in numbers] == [0, 0, 0, 2, 2, 4, 4, 4, 4]
    assert [corpus[n].text_length for n in numbers] == [0, 1, 2, 20, 21, 40, 41, 42, 43]
    with pytest.raises(IndexError):
        corpus[9]


def test_lists_know_the_sizes_of_their_documents_and_read_texts_in_part():
    documents = DocumentList([Document((text(3), IMAGE, IMAGE)), Document((text(9),))])
    assert documents.text_lengths.tolist() == [3, 9]
    assert documents.images.tolist() == [2, 0]
    assert documents.text(1, 2, 5).tolist() == [2, 3, 4]
    assert documents.text(1, 7, 20).tolist() == [7, 8]


def test_the_area_of_a_document_is_that_of_all_its_images_of_whatever_shape():
    wide, codes = Image(np.zeros((2, 9, 3), np.float32)), Image(np.zeros((5, 3), np.int32))
    documents = [Document((text(3), IMAGE, wide)), Document((text(9),)), Document((codes,))]
    assert [document.area for document in documents] == [4 * 4 + 2 * 9, 0, 5 * 3]
    known = DocumentList(documents)
    assert known.areas(slice(None)).tolist() == [34, 0, 15]
    assert known.areas(np.array([2, 0, 2])).tolist() == [15, 34, 15]
    assert known.areas(slice(0, 2)).dtype == np.int64


def test_lists_know_the_shapes_of_their_images():
    wide, codes = Image(np.zeros((2, 9, 3), np.float32)), Image(np.zeros((5, 3), np.int32))
    documents = [Document((text(3), IMAGE, wide)), Document((text(9),)), Document((codes,)), Document((IMAGE,))]
    assert DocumentList(documents).shapes == {(4, 4), (2, 9), (5, 3)}
    assert DocumentList(documents[1:2]).shapes == set()


@pytest.mark.parametrize("max_side", [0, 12])
def test_the_shapes_of_synthetic_documents_are_those_of_their_images(max_side):
    how = dict(split="held_out", seed=3, vocabulary=256, latent_shape=(8, 8, 2), longest=20, max_side=max_side)
    documents = SyntheticDocuments("pairs", patch_size=2, **how)
    assert documents.shapes == {d.segments[1].latent.shape[:2] for d in map(documents.__getitem__, range(256))}
    assert (len(documents.shapes) > 1) == (max_side > 0)
    assert SyntheticDocuments("text", patch_size=2, **how).shapes == set()


def test_images_that_are_alike_but_for_their_shapes_are_two():
    images = [Image(np.zeros(shape, np.float32)) for shape in ((4, 6, 2), (6, 4, 2), (4, 6, 2), (3, 8, 2))]
    corpus = Corpus((Source("a", DocumentList([Document((text(1), image)) for image in images])),))
    assert sorted(d.pair[1].latent.shape for d in corpus.pairs(10)) == [(3, 8, 2), (4, 6, 2), (6, 4, 2)]


@pytest.mark.parametrize("kind", ["pairs", "text"])
def test_the_areas_of_synthetic_documents_are_those_of_their_images(kind):
    documents = SyntheticDocuments(kind, "held_out", seed=3, vocabulary=256, latent_shape=(4, 6, 2), longest=20)
    chosen = np.array([7, 0, 200])
    assert documents.areas(chosen).tolist() == [documents[number].area for number in chosen.tolist()]
    assert documents.areas(slice(None)).shape == documents.images.shape


def test_the_hash_is_of_the_content():
    assert hashed() == hashed()
    assert len(hashed()) == 16
    different = {
        "loss": hashed(change=lambda d: edit(d, 1, replace(d[1].segments[0], loss=False))),
        "token": hashed(change=lambda d: edit(d, 1, Text(d[1].segments[0].tokens + 1))),
        "pixel": hashed(change=lambda d: edit(d, 0, Image(d[0].segments[1].latent + 1e-3))),
        "type": hashed(change=lambda d: edit(d, 1, Text(d[1].segments[0].tokens.astype(np.int64)))),
        "order": hashed(change=lambda d: d[::-1]),
        "name": hashed(name="other"),
        "fewer": hashed(change=lambda d: d[:-1]),
        "segments": hashed(change=lambda d: [Document(d[0].segments[::-1]), *d[1:]]),
        "layout": hashed(change=lambda d: edit(d, 0, Image(d[0].segments[1].latent.reshape(2, 8, 2)))),
    }
    assert len({hashed(), *different.values()}) == 1 + len(different)


def test_the_hash_knows_where_a_document_ends():
    a, b, c = text(1), text(2), text(3)
    first = [Document((a, b)), Document((c,))]
    second = [Document((a,)), Document((b, c))]
    assert DocumentList(first).hash != DocumentList(second).hash


def hashed(name="s", change=list):
    random = np.random.default_rng(3)
    documents = [
        Document((random_text(random), random_image(random))),
        Document((random_text(random),)),
        Document((random_text(random),)),
    ]
    return Corpus((Source(name, DocumentList(change(documents))),)).hash


def edit(documents, number, segment):
    """The documents with the last segment of one of them replaced."""
    changed = Document((*documents[number].segments[:-1], segment))
    return [*documents[:number], changed, *documents[number + 1 :]]


def text(length):
    return Text(np.arange(length, dtype=np.int32))
