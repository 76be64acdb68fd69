import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from skimage.data import astronaut

from transfusion_jax import autoencoder
from transfusion_jax.autoencoder.kinds.dct import CosineBlocks
from transfusion_jax.config import ConfigError


def test_luminance_is_the_cosine_transform_of_each_block():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    latents = np.asarray(CosineBlocks(8, 66).encode(images).mean)
    assert latents.shape == (2, 2, 3, 66)
    block = images[1, 8:, 8:16] @ [0.299, 0.587, 0.114]
    expected = dctn(block, norm="ortho") / 8
    np.testing.assert_allclose(latents[1, 1, 1, :3], [expected[0, 0], expected[0, 1], expected[1, 0]], atol=1e-5)
    np.testing.assert_allclose(np.sort(np.abs(latents[1, 1, 1, :50]))[-10:], largest(expected, latents), atol=1e-5)


def test_colours_are_those_of_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 3)).astype(np.uint8)
    images = pixels.repeat(2, 0).repeat(2, 1)[None] / np.float32(127.5) - 1
    latents = np.asarray(CosineBlocks(2, 3).encode(images).mean)[0]
    theirs = np.asarray(Image.fromarray(pixels).convert("YCbCr"), np.float32)
    np.testing.assert_allclose((latents + [1, 0, 0]) * 127.5 + [0, 128, 128], theirs, atol=1.2)


@pytest.mark.parametrize(("name", "error"), [("dct-f2c6", 0.05), ("dct-f4c12", 0.09), ("dct-f8c8", 0.16)])
def test_a_photograph_comes_back_less_its_high_frequencies(name, error):
    image = np.asarray(Image.fromarray(astronaut()).resize((256, 256)), np.float32)[None] / 127.5 - 1
    coder = autoencoder.load_autoencoder(name)
    latents = coder.encode(image).mean
    assert coder.image_shape(latents.shape[1:]) == image.shape[1:]
    assert np.sqrt(np.mean((np.asarray(coder.decode(latents)) - image) ** 2)) < error
    again = coder.encode(coder.decode(latents)).mean
    np.testing.assert_allclose(np.median(np.abs(again - latents)), 0, atol=0.01)


@pytest.mark.parametrize("name", ["dct", "dct-f3c8", "dct-f8c2", "dct-f2c40", "kl-f8c8"])
def test_names_that_mean_nothing_are_refused(name):
    with pytest.raises(ConfigError, match="give a folder"):
        autoencoder.load_autoencoder(name)


def largest(expected, latents):
    """The ten largest of the coefficients that fifty channels keep."""
    order = sorted(np.ndindex(8, 8), key=lambda at: (at[0] + at[1], at[0]))[:50]
    return np.sort([abs(expected[at]) for at in order])[-10:]
