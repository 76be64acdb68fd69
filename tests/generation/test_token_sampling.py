import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion_jax.config import ConfigError
from transfusion_jax.generation.token_sampling import SMALLEST, Writing, choose_tokens, likelier

LOGITS = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.05, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]]))


def test_without_a_temperature_the_likeliest_is_taken():
    assert chosen(Writing(), 3)[:, 0].tolist() == [1] * 3


def test_tokens_are_drawn_as_often_as_they_are_likely():
    for temperature in (1.0, 2.0):
        found = np.bincount(chosen(Writing(temperature=temperature), 4000)[:, 0], minlength=5) / 4000
        np.testing.assert_allclose(found, jax.nn.softmax(LOGITS[0] / temperature), atol=0.03)


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        (dict(top_k=2), [1, 4]),
        (dict(top_k=9), [0, 1, 2, 3, 4]),
        (dict(top_p=0.5), [1]),
        (dict(top_p=0.51), [1, 4]),
        (dict(top_p=0.86), [0, 1, 2, 4]),
        (dict(min_p=0.3), [1, 2, 4]),
        (dict(top_k=3, top_p=0.6), [1, 4]),  # of 0.5, 0.2 and 0.15, which make up 0.85
        (dict(top_k=3, top_p=0.9, min_p=0.5), [1]),
    ],
)
def test_only_the_likelier_tokens_are_left(how, kept):
    left = likelier(LOGITS, Writing(temperature=1.0, **how).chances())
    assert np.flatnonzero(np.isfinite(left[0])).tolist() == kept
    np.testing.assert_array_equal(left[0, np.array(kept)], LOGITS[0, np.array(kept)])
    assert set(chosen(Writing(temperature=1.0, **how), 200)[:, 0].tolist()) <= set(kept)


@pytest.mark.parametrize("how", [{"temperature": SMALLEST}, {"temperature": 1.0, "top_p": SMALLEST}])
def test_the_smallest_numbers_leave_the_likeliest_token(how):
    assert set(chosen(Writing(**how), 50)[:, 0].tolist()) == {1}


def test_equals_are_left_together():
    assert np.isfinite(likelier(LOGITS, Writing(temperature=1.0, top_k=2).chances())[1]).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(max_tokens=0), "max_tokens must be at least 1"),
        (dict(temperature=-1.0), "temperature must be 0, for the likeliest token, or at least"),
        (dict(temperature=float("nan")), "temperature must be 0, for the likeliest token, or at least"),
        (dict(temperature=1e-40), "temperature must be 0, for the likeliest token, or at least"),
        (dict(temperature=1.0, top_p=1e-40), "top_p must lie between 1e-06 and 1, not 1e-40"),
        (dict(temperature=1.0, top_k=-1), "top_k must not be negative"),
        (dict(temperature=1.0, top_p=0.0), "top_p must lie between 1e-06 and 1"),
        (dict(temperature=1.0, min_p=1.1), "min_p must lie between 0 and 1"),
        (dict(stop=("",)), "a stop string must not be empty"),
        (dict(top_k=5), "go with a temperature above 0"),
    ],
)
def test_what_is_out_of_range_is_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        Writing(**how)


def chosen(writing, count):
    """Draws `[count, 2]`."""
    keys = jax.random.split(jax.random.key(0), (count, 2))
    return np.asarray(jax.vmap(lambda k: choose_tokens(LOGITS, k, writing.chances(), writing.filters))(keys))
