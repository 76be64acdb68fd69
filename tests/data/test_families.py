"""Data of models of codes and of text alone."""

import numpy as np
import pytest

from helpers import token_config
from transfusion_jax import autoencoder
from transfusion_jax.config import ConfigError
from transfusion_jax.data.datasets import load_data


def test_a_model_of_text_alone_refuses_a_source_with_images():
    with pytest.raises(ConfigError, match="source 'pairs' holds images"):
        load_data(token_config("none"))


def test_synthetic_sources_are_those_that_the_model_reads():
    assert list(token_config("none", data__sources="synthetic").data.sources) == ["text"]
    config = token_config(data__sources="synthetic")
    data = load_data(config)
    image = data.train.pairs(1)[0].segments[1].latent
    assert image.shape == (4, 4)
    assert image.dtype == np.int32
    assert 0 <= image.min() <= image.max() < config.model.codebook
    assert data.codec.images(image[None]).shape == (1, 32, 32, 1)


def test_grey_levels_are_codes_and_back():
    grey = autoencoder.load_autoencoder("grey-f2k9")
    codes = np.arange(16).reshape(1, 4, 4) % 9
    images = grey.decode(codes)
    assert images.shape == (1, *grey.image_shape((4, 4, 1)))
    np.testing.assert_array_equal(grey.encode(images).codes, codes)
    np.testing.assert_array_equal(grey.encode(np.repeat(images, 3, -1)).codes, codes)
