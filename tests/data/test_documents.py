from dataclasses import replace

import numpy as np
import pytest

from helpers import random_image, random_text
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source, Text

IMAGE = Image(np.zeros((4, 4, 2), np.float32))
CAPTION = Text(np.arange(3))


def test_a_document_counts_its_elements():
    document = Document((text(3), IMAGE, IMAGE, text(0), text(2)))
    assert (document.images, document.text_length) == (2, 5)
    assert document.length(patches=4) == 1 + 5 + 2 * (4 + 2)
    assert Document(()).length(patches=4) == 1


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
