import dataclasses

import numpy as np
import pytest

from helpers import tiny_config
from transfusion_jax.autoencoder import Identity
from transfusion_jax.config import ConfigError
from transfusion_jax.data import digits, load, prose
from transfusion_jax.data.documents import Image, Text
from transfusion_jax.data.load import Codec
from transfusion_jax.data.statistics import LatentStatistics
from transfusion_jax.data.tokenizer import ByteTokenizer, SpecialTokens


@pytest.fixture(autouse=True)
def little_prose(monkeypatch):
    monkeypatch.setattr(prose, "_docstrings", lambda: iter(f"text {n} of café" for n in range(100)))


def test_training_latents_have_zero_mean_and_unit_variance_per_channel():
    data = load.load(config())
    latents = np.stack([d.segments[1].latent for d in data.train.sources[0]])
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=1e-5)
    assert latents.dtype == np.float32


def test_every_channel_has_statistics_of_its_own(monkeypatch):
    scale, shift = np.array([0.1, 0.4]), np.array([-0.5, 0.2])
    images = (np.random.default_rng(0).uniform(-1, 1, (200, 8, 8, 2)) * scale + shift).astype(np.float32)
    picture = digits.Digits(images, np.zeros(200, int))
    monkeypatch.setattr(digits, "load", lambda held_out, seed: (picture, picture))
    statistics = load.load(config(model__latent_shape=(8, 8, 2))).codec.statistics
    np.testing.assert_allclose(statistics.mean, shift, atol=0.01)
    np.testing.assert_allclose(statistics.std, scale / np.sqrt(3), rtol=0.03)


def test_held_out_documents_are_kept_apart_and_normalised_alike():
    data = load.load(config())
    seen, unseen = ({hashable(d) for s in corpus.sources for d in s} for corpus in (data.train, data.held_out))
    assert seen.isdisjoint(unseen)
    train, out = digits.load(0.2, config().seed)
    images = [d.segments[1].latent for d in data.held_out.sources[0]]
    assert len(images) == 4 * len(out.images)
    np.testing.assert_allclose(data.codec.images(np.stack(images[::4])), out.images, atol=1e-6)
    np.testing.assert_allclose(data.codec.statistics.mean, train.images.mean(), atol=1e-6)


def test_documents_carry_their_captions_and_sources_their_weights():
    data = load.load(config())
    assert [s.name for s in data.train.sources] == ["pairs", "texts"]
    captions = [data.codec.tokenizer.decode(d.segments[0].tokens) for d in data.train.sources[0]]
    labels = np.repeat(digits.load(0.2, config().seed)[0].labels, 4)
    assert [digits.digit_in(c) for c in captions] == labels.tolist()
    texts = [data.codec.tokenizer.decode(d.segments[0].tokens) for d in data.train.sources[1]]
    assert set(texts) < {f"text {n} of café" for n in range(100)}


def test_without_images_latents_stay_as_they_are():
    codec = load.load(config(data__sources=dict(texts=dict(kind="prose")))).codec
    np.testing.assert_array_equal(codec.latents(np.full((1, 8, 8, 1), 0.3, np.float32)), np.float32(0.3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data__sources={}), "names no data"),
        (dict(model__vocabulary=300), "tokenizer 'bytes' has 256 entries, and model.vocabulary is 300"),
        (dict(model__latent_shape=(8, 8, 3)), r"latents are \(8, 8, 1\), and model.latent_shape is \(8, 8, 3\)"),
        (dict(data__tokenizer="missing.model"), "tokenizer missing.model: there is no such file"),
        (dict(data__autoencoder="kl-f8c8"), "autoencoder 'kl-f8c8' is not available"),
    ],
)
def test_data_that_does_not_fit_the_model_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        load.load(config(**changes))


def test_statistics_invert_themselves_and_their_json():
    random = np.random.default_rng(0)
    statistics = LatentStatistics(random.normal(size=3), random.uniform(0.1, 9, 3))
    latents = random.normal(5, 3, (2, 4, 4, 3)).astype(np.float32)
    again = LatentStatistics.from_dict(statistics.to_dict())
    np.testing.assert_allclose(again.restore(statistics.normalise(latents)), latents, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(again.normalise(latents), statistics.normalise(latents))


def test_bounds_are_the_darkest_and_the_brightest_pixel():
    codec = Codec(
        ByteTokenizer(), SpecialTokens.after(256), Identity(), LatentStatistics(np.array([0.2]), np.array([0.5]))
    )
    low, high = codec.bounds()
    extremes = codec.latents(np.array([-1, 1], np.float32).reshape(2, 1, 1, 1)).ravel()
    np.testing.assert_allclose([low[0], high[0]], extremes)
    np.testing.assert_allclose(extremes, [-2.4, 1.6], rtol=1e-6)
    unbounded = dataclasses.replace(codec, autoencoder=Identity(bounds=None))
    assert unbounded.bounds() is None


def config(**changes):
    base = dict(model__vocabulary=256, model__latent_shape=(8, 8, 1), model__patch_size=4, data__held_out=0.2)
    return tiny_config(**(base | changes))


def hashable(document):
    return tuple(
        s.tokens.tobytes() if isinstance(s, Text) else s.latent.tobytes()
        for s in document.segments
        if isinstance(s, Image) or document.images == 0
    )
