import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion_jax import autoencoder as autoencoders
from transfusion_jax.autoencoder.kinds import trained
from transfusion_jax.autoencoder.kinds.trained import Trained
from transfusion_jax.autoencoder.network import Network
from transfusion_jax.config import ConfigError
from transfusion_jax.config.autoencoder import Architecture, paper
from transfusion_jax.storage.atomic import DamagedFile

SMALL = dict(channels=8, multipliers=(1, 2), blocks=1, groups=4, latent_channels=3)
KL, VQ = Architecture("kl", **SMALL), Architecture("vq", codebook=16, **SMALL)


def made(architecture, name="small", seed=0):
    return Trained(name, architecture, jax.jit(Network(architecture).init)(jax.random.key(seed)))


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_papers_autoencoders_have_86m_parameters_and_its_shapes(kind):
    network = Network(paper(kind))
    params = network.abstract_params()
    assert round(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) / 1e6) == 86
    found = jax.eval_shape(network.encode, params, jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32))
    assert found.mean.shape == (1, 32, 32, 8)
    if kind == "vq":
        assert found.codes.shape == (1, 32, 32)
        assert params["quantize"]["entries"].shape == (16_384, 8)
    assert jax.eval_shape(network.decode, params, found.mean).shape == (1, 256, 256, 3)


def test_codes_are_the_nearest_entries_and_decode_as_they():
    ours, images = made(VQ), jax.random.uniform(jax.random.key(1), (2, 8, 8, 3), minval=-1)
    ours.params["quantize"]["entries"] = jax.random.normal(jax.random.key(2), (16, 3))
    network = Network(VQ)
    vectors = jax.jit(network.encode)(ours.params, images).mean
    distances = np.linalg.norm(vectors[..., None, :] - ours.params["quantize"]["entries"], axis=-1)
    codes = ours.encode(images).codes
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, distances.argmin(-1))
    entries = network.lookup(ours.params, codes)
    np.testing.assert_allclose(ours.decode(codes), ours.decode(entries), atol=1e-6)


def test_images_are_decoded_alike_whatever_is_decoded_beside_them():
    ours, latents = made(KL), np.random.default_rng(0).standard_normal((trained.DECODED + 3, 4, 4, 3), np.float32)
    together = ours.decode(latents)
    assert together.shape == (trained.DECODED + 3, 8, 8, 3)
    np.testing.assert_allclose(together[-1:], ours.decode(latents[-1:]), atol=1e-5)
    assert np.abs(together).max() <= 1


def test_a_folder_keeps_an_autoencoder(tmp_path):
    ours = made(KL)
    ours.save(tmp_path)
    again = autoencoders.load_autoencoder(str(tmp_path))
    assert (again.name, again.architecture, again.hash()) == ("small", KL, ours.hash())
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)
    ours.save(tmp_path)  # the same one: nothing to do
    assert made(KL, seed=1).hash() != ours.hash()
    with pytest.raises(ConfigError, match="holds another autoencoder"):
        made(KL, seed=1).save(tmp_path)


def test_what_is_kept_with_data_is_found_by_name(tmp_path):
    ours = made(VQ)
    autoencoders.save(ours, tmp_path)
    assert autoencoders.load_saved_autoencoder(tmp_path, "small").hash() == ours.hash()
    autoencoders.save(autoencoders.load_autoencoder("dct-f8c8"), tmp_path)  # has no weights
    assert [p.name for p in tmp_path.iterdir()] == ["autoencoder-small"]
    assert autoencoders.load_saved_autoencoder(tmp_path, "dct-f8c8").name == "dct-f8c8"


def test_damage_is_named(tmp_path):
    made(KL).save(tmp_path)
    weights = tmp_path / trained.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(DamagedFile, match="its hash is not the one"):
        autoencoders.load_autoencoder(str(tmp_path))
    weights.write_bytes(whole[:-4])
    with pytest.raises(DamagedFile, match="is damaged"):
        autoencoders.load_autoencoder(str(tmp_path))
    with pytest.raises(ConfigError, match="give a folder"):
        autoencoders.load_autoencoder(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(kind="gan"), "architecture.kind"),
        (dict(codebook=8), "a kl has 0"),
        (dict(kind="vq", codebook=0), "a vq has entries"),
        (dict(groups=3), "must divide"),
        (dict(attention=(2,)), "resolutions 0 to 1"),
        (dict(projections=False, encoder_channels=5), "takes projections"),
        (dict(multipliers=()), "at least one"),
    ],
)
def test_impossible_architectures_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(KL, **changes)


@pytest.mark.parametrize("name", ["a/b", "", "..", "pixels", "identity", "dct-f4c8"])
def test_a_name_is_a_word(name, tmp_path):
    with pytest.raises(ConfigError):
        made(KL, name).save(tmp_path / "x")
