import dataclasses
import json

import jax
import numpy as np
import pytest

from helpers import SEVERAL, digits_config, prepare, tiny_codec, tiny_config, token_config
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import ConfigError
from transfusion_jax.data.datasets import Codec, Data, load_data
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source
from transfusion_jax.data.readers import digits
from transfusion_jax.data.store.latent_stats import LatentStatistics
from transfusion_jax.data.tokenizer import ByteTokenizer, SpecialTokens


def test_training_latents_have_zero_mean_and_unit_variance_per_channel(digits_folder):
    source = load_data(digits_config(digits_folder)).train.sources[0]
    latents = np.stack([document.segments[1].latent for document in source])
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=1e-5)
    assert latents.dtype == np.float32


def test_held_out_documents_are_kept_apart_and_normalised_alike(digits_folder):
    data = load_data(digits_config(digits_folder))
    seen, unseen = ({d.segments[1].latent.tobytes() for d in corpus.sources[0]} for corpus in splits(data))
    assert seen.isdisjoint(unseen)
    assert len(seen | unseen) == 1797
    assert len(unseen) == pytest.approx(0.15 * 1797, rel=0.15)
    assert len(data.held_out.sources[0]) == 4 * len(unseen)


def test_documents_carry_their_captions(digits_folder):
    data = load_data(digits_config(digits_folder))
    captions = [data.codec.tokenizer.decode(d.segments[0].tokens) for d in data.train.sources[0]]
    assert set(captions) == {caption for digit in range(10) for caption in digits.captions(digit)}


def test_another_folder_can_be_held_out_whole(digits_folder, tmp_path):
    prepare(tmp_path / "out", ["digits"], channels=1)
    source = {"path": str(digits_folder), "held_out": str(tmp_path / "out")}
    data = load_data(digits_config(digits_folder, data__sources={"digits": source}))
    assert len(data.held_out) == 4 * 1797 > len(data.train)


def test_a_source_that_a_later_phase_brings_changes_no_earlier_row(digits_folder, tmp_path):
    prepare(tmp_path / "bright", ["digits"], channels=1, held_out=0.5)
    sources = {"digits": {"path": str(digits_folder)}}
    more = sources | {"bright": {"path": str(tmp_path / "bright"), "weight": 0}}
    one = digits_config(digits_folder)
    two = digits_config(digits_folder, data__sources=more, data__phases={"20": {"bright": 1, "digits": 1}})
    before, after = (make_rows(load_data(c).train, c, SpecialTokens.after(256)) for c in (one, two))
    for row in range(20):
        jax.tree.map(np.testing.assert_array_equal, before[row], after[row])
    assert {1} < {source for row in range(20, 30) for source in after[row].source.tolist()}


def test_synthetic_sources_need_no_files_and_fit_their_rows():
    config = tiny_config(data__sources="synthetic")
    data = load_data(config)
    rows = make_rows(data.train, config, data.codec.special)
    batches = [rows[row] for row in range(50)]
    assert {0, 1} <= {source for batch in batches for source in batch.source.tolist()}
    assert max(batch.tokens.max() for batch in batches) < 20 + 5
    assert {s.documents.hash for s in data.train.sources}.isdisjoint(
        s.documents.hash for s in data.held_out.sources
    )
    again = make_rows(load_data(config).train, config, data.codec.special)
    np.testing.assert_array_equal(again[7].media["images"].patches, rows[7].media["images"].patches)


def test_a_manifest_says_how_large_the_images_are_that_differ():
    several = tiny_config(**SEVERAL, data__sources="synthetic")
    data = load_data(several)
    shapes = np.array([d.segments[1].latent.shape[:2] for d in data.train.sources[0]])
    assert data.facts(several)["shapes"] == {
        "height": [shapes[:, 0].min(), shapes[:, 0].max()],
        "width": [shapes[:, 1].min(), shapes[:, 1].max()],
        "area": [shapes.prod(1).min(), shapes.prod(1).max()],
    }
    assert json.loads(json.dumps(data.facts(several))) == data.facts(several)


@pytest.mark.parametrize(
    ("weights", "sides"), [(dict(small=1), [4, 4]), (dict(large=1), [8, 8]), (dict(large=1, small=1), [4, 8])]
)
def test_the_sizes_are_those_of_what_is_trained_on(weights, sides):
    held = {name: Document((Image(np.ones((side, side, 2))),)) for name, side in (("large", 8), ("small", 4))}
    data = Data(Corpus(tuple(Source(n, DocumentList([d])) for n, d in held.items())), Corpus(()), tiny_codec())
    sources = {name: {"path": "synthetic:pairs", "weight": weights.get(name, 0)} for name in held}
    config = tiny_config(model__latent_shape=(8, 8, 2), model__max_side=16, data__sources=sources)
    areas = [side**2 for side in sides]
    assert data.facts(config)["shapes"] == {"height": sides, "width": sides, "area": areas}


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(data__sources="synthetic"),
        tiny_config(**SEVERAL, data__sources={"texts": {"path": "synthetic:text"}}),
        token_config("none", data__sources={"texts": {"path": "synthetic:text"}}),
    ],
)
def test_runs_of_one_size_and_of_texts_have_manifests_as_before(config):
    assert load_data(config).facts(config).keys() == {"data_hash", "row_plan", "codec"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data__sources={}), "names no data"),
        (dict(data__sources={"a": {"path": "nowhere"}}), "nowhere does not exist"),
        (dict(data__sources={"a": {"path": "synthetic:pears"}}), "did you mean 'pairs'"),
        (
            dict(model__vocabulary=300),
            "tokenizer 'bytes' has 256 entries, and model.vocabulary is 300: add --config.model.vocabulary=256",
        ),
        (
            dict(model__latent_shape=(8, 8, 3)),
            r"in encoding 'pixels' have channels \[1\], and model.latent_shape is \[8, 8, 3\]",
        ),
        (dict(data__encoding="kl-f8c8"), "have no encoding 'kl-f8c8'; there is pixels"),
    ],
)
def test_data_that_does_not_fit_the_model_is_named(changes, message, digits_folder):
    with pytest.raises(ConfigError, match=message):
        load_data(digits_config(digits_folder, **changes))


def splits(data):
    return data.train, data.held_out


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
