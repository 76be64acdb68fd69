import numpy as np
import pytest
from sklearn.datasets import load_digits

from transfusion_jax.config import ConfigError
from transfusion_jax.data import digits


@pytest.mark.parametrize("held_out", [0.0, 0.1, 0.15, 0.99])
def test_the_split_is_disjoint_and_complete(held_out):
    train, out = digits.load(held_out, seed=0)
    assert len(out.images) == pytest.approx(1797 * held_out, abs=1)
    everything = fingerprints(train) + fingerprints(out)
    assert len(set(everything)) == 1797  # no digit of the set is there twice
    assert set(fingerprints(train)).isdisjoint(fingerprints(out))
    assert set(everything) == set(fingerprints(digits.load(0.0, seed=7)[0]))


def test_the_file_is_read_as_scikit_learn_reads_it():
    theirs, (ours, _) = load_digits(), digits.load(0.0, seed=0)
    order = np.random.default_rng(0).permutation(1797)
    np.testing.assert_array_equal(ours.labels, theirs.target[order])
    np.testing.assert_allclose(ours.images[..., 0], theirs.images[order] / 8 - 1)


def test_the_split_is_a_function_of_the_seed():
    assert fingerprints(digits.load(0.1, 3)[1]) == fingerprints(digits.load(0.1, 3)[1])
    assert set(fingerprints(digits.load(0.1, 3)[1])) != set(fingerprints(digits.load(0.1, 4)[1]))


def test_pictures_fill_the_range_and_each_digit_is_held_out():
    train, out = digits.load(0.15, seed=0)
    for part in (train, out):
        assert part.images.shape[1:] == (8, 8, 1)
        assert part.images.dtype == np.float32
        assert (part.images.min(), part.images.max()) == (-1, 1)
        assert set(part.labels) == set(range(10))


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
        digits.load(0.1, 0)


def fingerprints(part):
    return [image.tobytes() for image in part.images]
