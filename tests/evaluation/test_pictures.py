"""Images as judges see them, of models whose images have any shape."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from helpers import digits_config, tiny_config
from transfusion_jax.autoencoder.kinds.dct import CosineBlocks
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import ConfigError
from transfusion_jax.data.datasets import Codec, Data, load_data, plain_statistics
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source
from transfusion_jax.data.tokenizer import ByteTokenizer, SpecialTokens
from transfusion_jax.evaluation import pictures
from transfusion_jax.evaluation.geneval import square_grid
from transfusion_jax.evaluation.pictures import (
    captioned_pictures,
    drawn_for_held_out,
    listed_sizes,
    own_grid,
    sizes_of,
)
from transfusion_jax.evaluation.suites import digits as suite
from transfusion_jax.evaluation.suites import frechet
from transfusion_jax.generation.interleaved import Sample
from transfusion_jax.generation.prompt import prompt_of
from transfusion_jax.tasks.base import make_task

SHAPES = ((8, 8), (4, 16), (12, 4), (4, 4))
NATIVE = tiny_config(model__vocabulary=256, model__latent_shape=(8, 8, 3), model__max_side=16, model__patch_size=4)


def codec_with(autoencoder, channels):
    tokenizer = ByteTokenizer()
    return Codec(tokenizer, SpecialTokens.of(tokenizer), autoencoder, plain_statistics(channels))


CODEC = codec_with(Identity(), 3)


def corpus_of(images):
    documents = [
        Document((*prompt_of(f"picture {n}", CODEC).segments, Image(image))) for n, image in enumerate(images)
    ]
    return Corpus((Source("pairs", DocumentList(documents)),))


def noise(count):
    random = np.random.default_rng(0)
    shapes = [(*SHAPES[n % len(SHAPES)], 3) for n in range(count)]
    return [random.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


@pytest.fixture
def asked(monkeypatch):
    """Requests that came; a grey picture of the grid that is asked for stands for what would be drawn."""
    came = []

    def generate(task, params, codec, requests):
        came.extend(requests)
        k = task.config.model.patch_size
        return [Sample((np.zeros((r.grid[0] * k, r.grid[1] * k, 3), np.float32),), "end") for r in requests]

    monkeypatch.setattr(pictures, "generate", generate)
    return came


def test_pictures_of_the_same_values_in_other_shapes_are_told_apart():
    images = [np.zeros(shape, np.float32) for shape in ((4, 16, 3), (8, 8, 3), (16, 4, 3), (8, 8, 3))]
    found = captioned_pictures(corpus_of(images), NATIVE, CODEC, 0)
    assert sorted(picture.image.shape for picture in found) == [(4, 16, 3), (8, 8, 3), (16, 4, 3)]


def test_a_picture_is_drawn_in_the_shape_of_the_one_whose_caption_it_has(asked):
    data = Data(corpus_of(noise(8)), corpus_of(noise(9)), CODEC)
    parts = list(drawn_for_held_out(make_task(NATIVE), None, data, 7))
    real, drawn = ([image for part in parts for image in getattr(part, name)] for name in ("real", "drawn"))
    assert [image.shape for image in drawn] == [image.shape for image in real]
    assert len({image.shape for image in drawn}) == 4
    assert [request.number for request in asked] == list(range(7))
    asked.clear()
    found = frechet.run(make_task(NATIVE), None, data, jax.random.key(0))
    assert {request.grid for request in asked} == {(2, 2), (1, 4), (3, 1), (1, 1)}
    assert found["frechet_pixels"] > 0


def test_an_image_in_pixels_has_the_grid_of_its_latent():
    blocks = codec_with(CosineBlocks(4, 12), 12)
    config = tiny_config(model__latent_shape=(12, 12, 12), model__max_side=36)
    assert own_grid((16, 144, 3), config, blocks) == (2, 18)
    with pytest.raises(ConfigError, match="an image's latent is 4×40"):
        own_grid((16, 160, 3), config, blocks)
    one_size = tiny_config(model__latent_shape=(12, 12, 12))
    assert own_grid((48, 48, 3), one_size, blocks) is None


@pytest.mark.parametrize(
    ("latent", "max_side", "grid"),
    [((4, 6, 2), 8, (2, 2)), ((8, 8, 2), 16, (4, 4)), ((2, 8, 2), 8, (2, 2)), ((4, 6, 2), 0, (2, 3))],
)
def test_genevals_images_are_the_largest_squares_of_the_model(latent, max_side, grid):
    assert square_grid(tiny_config(model__latent_shape=latent, model__max_side=max_side).model) == grid


def test_sizes_are_listed_width_by_height_the_commonest_first():
    images = [np.zeros((*shape, 3), np.uint8) for shape in ((8, 8), (4, 16), (8, 8))]
    assert listed_sizes(sizes_of(images[:1])) == "8x8"
    assert listed_sizes(sizes_of(images)) == "8x8 and 16x4"
    many = [np.zeros((4, side, 3), np.uint8) for side in range(4, 10)]
    assert listed_sizes(sizes_of(many)) == "4x4, 5x4, 6x4 and 3 other sizes"


def test_digits_are_drawn_in_their_own_shape_by_a_model_of_larger_images(digits_folder, monkeypatch):
    config = digits_config(
        digits_folder, model__latent_shape=(16, 16, 1), model__max_side=32, evaluation__images=10
    )
    data, grids = load_data(config), []

    def draw(task, params, codec, captions, seed, sampling, asked):
        grids.extend(asked)
        return [np.zeros((8, 8, 1), np.float32) for _ in captions]

    monkeypatch.setattr(suite, "draw_images", draw)
    monkeypatch.setattr(suite, "caption_images", lambda task, params, codec, images: [""] * len(images))
    found = suite.run(make_task(config), None, data, jax.random.key(0))
    assert grids == [config.model.grid(8, 8)] * 20
    assert found["generation_accuracy"] == 0.1  # one and the same picture
    wide = Document((*prompt_of("three dogs", data.codec).segments, Image(np.zeros((8, 16, 1), np.float32))))
    others = Corpus((*data.train.sources, Source("photographs", DocumentList([wide]))))
    with pytest.raises(ConfigError, match="images of several shapes have captions that name a digit"):
        suite.check(config, replace(data, train=others))
