import numpy as np
import pytest
from sklearn.datasets import load_digits

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import digits, input_shards
from transfusion_jax.data.readers.format import ReadOptions


def test_every_digit_is_read_with_each_of_its_captions():
    found, theirs = documents(), load_digits()
    assert len(found) == 4 * 1797
    images = np.stack([d.segments[1].data for d in found])
    labels = np.array([d.meta["digit"] for d in found])
    np.testing.assert_array_equal(labels, np.repeat(theirs.target, 4))
    np.testing.assert_allclose(images[::4, ..., 0] / 255 * 16, theirs.images, atol=0.04)
    np.testing.assert_array_equal(images[::4], images[3::4])
    assert [digits.digit_in(d.segments[0].text) for d in found] == labels.tolist()
    assert len({d.key for d in found}) == len(found)


def test_captions_name_their_digit():
    captions = [(label, caption) for label in range(10) for caption in digits.captions(label)]
    assert len({caption for _, caption in captions}) == 40
    assert all(digits.digit_in(caption) == label for label, caption in captions)


@pytest.mark.parametrize(
    "caption", ["", "a handwritten", "the digit one two", "two two one", "tone", "threefour", "a 7"]
)
def test_a_caption_that_names_no_digit_or_several_means_none(caption):
    assert digits.digit_in(caption) is None


def test_a_digit_named_twice_is_that_digit():
    assert digits.digit_in("a six is a six") == 6


def test_a_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="scikit-learn"):
        input_shards(["digits"], None, ReadOptions())


def test_the_set_has_no_parts():
    with pytest.raises(ConfigError, match="digits:7: the digits are one set"):
        input_shards(["digits:7"], None, ReadOptions())


def documents():
    (shard,) = input_shards(["digits"], None, ReadOptions())
    return list(digits.read(shard, ReadOptions()))
