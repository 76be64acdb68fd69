import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny_codec
from transfusion_jax import autoencoder
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import ConfigError
from transfusion_jax.data.store.latent_stats import LatentStatistics


def test_the_identity_keeps_images_and_limits_what_it_decodes():
    images = np.linspace(-1, 1, 32).reshape(2, 4, 4, 1)
    encoded = Identity().encode(images)
    np.testing.assert_array_equal(encoded.mean, images)
    assert encoded.codes is None
    np.testing.assert_array_equal(Identity().decode(jnp.array([-3.0, 0.5, 2.0])), [-1, 0.5, 1])
    assert Identity().image_shape((8, 8, 1)) == (8, 8, 1)


def test_an_autoencoder_that_is_not_there_is_refused():
    assert autoencoder.load_autoencoder("identity").hash() == "identity"
    with pytest.raises(ConfigError, match="'kl-f8c8': give a folder"):
        autoencoder.load_autoencoder("kl-f8c8")


def test_images_go_to_normalised_latents_and_back():
    images = np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 2)).astype(np.float32)
    codec = tiny_codec()
    latents = codec.latents(images)
    np.testing.assert_allclose(latents, images / 0.5, rtol=1e-6)
    np.testing.assert_allclose(codec.images(latents), images, rtol=1e-6)
    np.testing.assert_array_equal(codec.bounds(), [[-2, -2], [2, 2]])


def test_statistics_survive_json_exactly():
    statistics = LatentStatistics(np.array([0.1, -1 / 3]), np.array([2 / 3, 1e-3]))
    again = LatentStatistics.from_dict(statistics.to_dict())
    np.testing.assert_array_equal(again.mean, statistics.mean)
    np.testing.assert_array_equal(again.std, statistics.std)
