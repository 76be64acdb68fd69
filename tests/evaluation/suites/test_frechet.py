import jax
import numpy as np
import pytest
from scipy import linalg

from helpers import tiny_config
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import ConfigError
from transfusion_jax.data.datasets import Codec, Data, plain_statistics
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source, Text
from transfusion_jax.data.tokenizer import ByteTokenizer, SpecialTokens
from transfusion_jax.evaluation.suites import frechet
from transfusion_jax.evaluation.suites.frechet import Statistics, distance, small_pixels
from transfusion_jax.tasks.base import make_task

TEXT = Text(np.array([97], np.int32))


def features(seed, count, size=20):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, size)) @ random.normal(size=(size, size)) + random.normal(size=size)


def test_the_distance_is_the_formula_with_scipys_root():
    first, second = features(0, 200), features(1, 300)
    a, b = Statistics.of(first), Statistics.of(second)
    root = linalg.sqrtm(np.cov(first, rowvar=False) @ np.cov(second, rowvar=False)).real
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2)
    expected += np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root)
    assert distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_it_holds_for_fewer_images_than_features():
    few = features(0, 5)
    moved = few + np.arange(20)
    assert distance(Statistics.of(few), Statistics.of(few)) == pytest.approx(0, abs=1e-4)
    assert distance(Statistics.of(few), Statistics.of(moved)) == pytest.approx(np.sum(np.arange(20) ** 2), rel=1e-6)
    wider = few.mean(0) + 3 * (few - few.mean(0))  # of normal laws of one form: (3 − 1)² times the trace
    expected = 4 * np.trace(np.cov(few, rowvar=False))
    assert distance(Statistics.of(few), Statistics.of(wider)) == pytest.approx(expected, rel=1e-4)


def test_small_pixels_are_means_of_squares():
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3)).astype(np.uint8)
    blocks = images.reshape(9, 8, 4, 8, 4, 3).mean((2, 4)) / 127.5 - 1
    found = small_pixels(images)
    np.testing.assert_allclose(found.mean, blocks.reshape(9, -1).mean(0), atol=1e-5)
    np.testing.assert_allclose(found.covariance, np.cov(blocks.reshape(9, -1), rowvar=False), atol=1e-5)


def test_statistics_of_other_features_are_refused(tmp_path):
    np.savez(tmp_path / "small.npz", mu=np.zeros(64), sigma=np.eye(64))
    np.savez(tmp_path / "other.npz", mean=np.zeros(2048))
    (tmp_path / "text.npz").write_text("no archive")
    assert Statistics.load(tmp_path / "small.npz", 64).covariance.shape == (64, 64)
    for name, message in (("small", r"of \(64,\) features, not of 2048"), ("other", "no mu"), ("text", "no mu")):
        with pytest.raises(ConfigError, match=message):
            Statistics.load(tmp_path / f"{name}.npz", 2048)
    with pytest.raises(ConfigError, match="two images at least"):
        Statistics.of(np.zeros((1, 4)))


@pytest.mark.parametrize(("learnt", "named"), [(6, True), (1, False), (0, False)])
def test_the_distance_of_training_images_is_absent_where_there_are_none(learnt, named, monkeypatch):
    config = tiny_config(model__latent_shape=(8, 8, 3), model__max_side=12, model__patch_size=4)
    tokenizer, random = ByteTokenizer(), np.random.default_rng(0)
    codec = Codec(tokenizer, SpecialTokens.of(tokenizer), Identity(), plain_statistics(3))

    def pairs(count):
        shapes = [(8, 8, 3), (4, 12, 3)] * count
        latents = [random.uniform(-1, 1, shape).astype(np.float32) for shape in shapes[:count]]
        return Corpus((Source("pairs", DocumentList([Document((TEXT, Image(x))) for x in latents])),))

    monkeypatch.setattr(
        frechet, "draw_for_pictures", lambda *_: list(random.integers(0, 256, (5, 8, 8, 3), np.uint8))
    )
    found = frechet.run(make_task(config), None, Data(pairs(learnt), pairs(5), codec), jax.random.key(0))
    assert found.keys() == {"frechet_pixels"} | ({"frechet_pixels_real"} if named else set())
