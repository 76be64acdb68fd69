"""Rows of images of any shape: filled by elements, images, text and patches."""

import re

import numpy as np
import pytest

from helpers import random_text, tiny_config
from transfusion_jax.config import ConfigError
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source, lengths_of
from transfusion_jax.data.packing.packing import Room, best_fit
from transfusion_jax.data.packing.plan import plan_rows
from transfusion_jax.data.synthetic import SyntheticDocuments

AREA = 4  # latent places of a patch
SHAPES = ((2, 2), (4, 4), (2, 16), (16, 2), (6, 10), (8, 8), (4, 14))


class Sizes:
    """`Documents` of which nothing is known but their sizes."""

    def __init__(self, text_lengths, images, areas):
        self.text_lengths, self.images, self._areas = text_lengths, images, areas
        self.hash = f"{len(images)} {areas.sum()}"

    def areas(self, documents):
        return self._areas[documents]


def shaped(random, count):
    """Pictures of random proportions from 1:4 to 4:1 with an area of 256 patches at most, and captions."""
    wider, share = 2.0 ** random.uniform(-1, 1, count), random.choice([1, 1, 1, 0.5, 0.25], count)
    rows = np.maximum(16 * np.sqrt(share) / wider, 1).astype(int)
    columns = np.maximum(256 * share // rows, 1).astype(int)
    captions = np.minimum(random.geometric(1 / 20, count), 500)
    return Sizes(captions, np.ones(count, np.int64), rows * columns * AREA)


def texts(random, count):
    return Sizes(random.lognormal(6, 1, count).astype(int), np.zeros(count, np.int64), np.zeros(count, np.int64))


def best_fit_decreasing(sizes, room):
    """How many rows the documents take, each to the row with the least room that it fits, longest first."""
    free = np.zeros(room + 1, np.int64)  # rows with so much room
    rows = 0
    for size in -np.sort(-np.asarray(sizes)):
        fitting = np.flatnonzero(free[size:])
        if len(fitting):
            left = size + fitting[0]
            free[left] -= 1
        else:
            rows, left = rows + 1, room
        free[left - size] += 1
    return rows


@pytest.mark.parametrize("marks", [False, True])
def test_sizes_are_those_of_the_documents_one_by_one(marks):
    random = np.random.default_rng(0)

    def image():
        return Image(np.zeros((*SHAPES[random.integers(len(SHAPES))], 2), np.float32))

    documents = [Document((random_text(random), *(image() for _ in range(random.integers(3))))) for _ in range(50)]
    held = DocumentList(documents)
    config = tiny_config(model__max_side=16, model__shape_marks=marks)
    model, around = config.model, 2 + 2 * marks
    found = Room.of(config).sizes(held, slice(10, 40))
    for document, (elements, images, text, patches) in zip(documents[10:40], found.tolist(), strict=True):
        pictures = [s.latent.shape for s in document.segments if isinstance(s, Image)]
        counted = sum(height * width // AREA for height, width, _ in pictures)
        assert (images, patches) == (len(pictures), counted)
        assert elements == document.length(model) == 1 + document.text_length + counted + around * images
        assert text == 1 + document.text_length + (around - 1) * images  # all but what stands before the patches
    np.testing.assert_array_equal(
        lengths_of(held, np.array([3, 1]), model), [documents[n].length(model) for n in (3, 1)]
    )


@pytest.mark.parametrize("marks", [False, True])
def test_captions_of_the_synthetic_mixture_leave_their_images_room(marks):
    shapes = dict(model__latent_shape=(4, 6, 2), model__max_side=8, model__shape_marks=marks)
    for config in (tiny_config(**shapes, data__max_text=12), tiny_config(**shapes, data__context_length=24)):
        room = Room.of(config)
        sizes = room.sizes(SyntheticDocuments.of("synthetic:pairs", "held_out", config), slice(None))
        assert np.all(sizes <= room.capacity)


def test_images_of_one_size_are_counted_by_images_alone():
    config = tiny_config()
    assert Room.of(config).capacity.tolist() == [48, 4, 48]
    several = tiny_config(model__max_side=8, data__max_patches=10)
    assert Room.of(several).capacity.tolist() == [48, 4, 48, 10]
    assert Room.of(tiny_config(model__max_side=8)).capacity.tolist() == [48, 4, 48, 16]


@pytest.mark.parametrize("patches", [300, 900, 4096])
@pytest.mark.parametrize("with_text", [True, False])
def test_rows_hold_no_more_than_they_may_and_little_padding(patches, with_text):
    random = np.random.default_rng(1)
    pictures = shaped(random, 6000)
    sources = [Source("pictures", pictures)] + [Source("texts", texts(random, 3000))] * with_text
    room = Room(4096, 64, 4096, patches=patches, patch_area=AREA)
    weights = {"pictures": min(1.0, patches / 4096 / 1.2), "texts": 1.0} if with_text else {"pictures": 1.0}
    if not with_text and patches < 4096:
        with pytest.raises(ConfigError, match=re.escape(f"data.max_patches is {patches}: raise it")):
            plan_rows(Corpus(tuple(sources)), weights, room, 0)
        return
    plan = plan_rows(Corpus(tuple(sources)), weights, room, 0)
    sizes = np.concatenate([room.sizes(source.documents, slice(None)) for source in sources])
    whole = plan.piece_document < 6000
    for column, most in enumerate(room.capacity):
        held = np.bincount(plan.piece_row[whole], sizes[plan.piece_document[whole], column], plan.rows)
        assert held.max() <= most
    assert plan.elements().max() <= 4096
    bound = 0.0 if with_text else 1 - sizes[:, 0].sum() / (4096 * best_fit_decreasing(sizes[:, 0], 4096))
    assert plan.about["padding"] <= (0.005 if with_text else bound + 0.01)


def test_a_document_with_more_patches_than_a_row_holds_is_named():
    documents = [Document((Image(np.zeros((4, 4, 2), np.float32)),) * n) for n in (1, 3)]
    corpus = Corpus((Source("p", DocumentList(documents)),))
    with pytest.raises(ConfigError, match=r"document 1 of source 'p' takes 12 patches .* data\.max_patches is 8"):
        plan_rows(corpus, {"p": 1.0}, Room(64, 8, 64, patches=8, patch_area=AREA), 0)


def test_documents_of_a_million_elements_are_placed():
    most = 2**21
    images, patches = np.array([2**15, 0]), np.array([2**20, 0])
    text = np.array([2**18, most])
    sizes = np.stack([text + images + patches, images, text, patches], 1)
    left = np.tile([most, 2**16, most, 2**20], (2, 1))
    np.testing.assert_array_equal(best_fit(sizes, left), [1, 0])
