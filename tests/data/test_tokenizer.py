import dataclasses

import numpy as np
import pytest

from transfusion_jax.config import SPECIAL_TOKENS, ConfigError
from transfusion_jax.data import tokenizer
from transfusion_jax.data.tokenizer import ByteTokenizer, SpecialTokens

TEXTS = [
    "",
    "a",
    "naïve café",
    "日本語",
    "👩‍👩‍👧 family",
    "\0\r\n\t\x7f",
    "e\u0301 \u202eright to left",
    "\U0010ffff" * 5,
]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_survive_a_round_trip(text):
    tokens = ByteTokenizer().encode(text)
    assert tokens.dtype == np.int32
    assert len(tokens) == len(text.encode())
    assert np.all((tokens >= 0) & (tokens < ByteTokenizer().size))
    assert ByteTokenizer().decode(tokens) == text


def test_random_texts_survive_a_round_trip():
    random = np.random.default_rng(0)
    for _ in range(200):
        points = random.integers(0, 0x110000, 20)
        text = "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
        assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


@pytest.mark.parametrize(
    ("tokens", "text"),
    [([0x61, 0xFF, 0x62], "a\ufffdb"), ([0xE6, 0x97], "\ufffd"), ([0x80, 0x61], "\ufffda")],
)
def test_bytes_that_are_no_text_become_the_replacement_character(tokens, text):
    assert ByteTokenizer().decode(np.array(tokens, np.int32)) == text


@pytest.mark.parametrize("token", [256, 258, 260, 383])
def test_ids_beyond_the_tokenizer_become_the_replacement_character(token):
    assert ByteTokenizer().decode(np.array([0x61, token, 0x62], np.int32)) == "a\ufffdb"


@pytest.mark.parametrize("vocabulary", [1, 256, 32_000])
def test_special_tokens_follow_the_tokenizers_own(vocabulary):
    ids = dataclasses.astuple(SpecialTokens.after(vocabulary))
    assert sorted(ids) == list(range(vocabulary, vocabulary + SPECIAL_TOKENS))


def test_the_config_names_the_tokenizer():
    assert tokenizer.load("bytes") == ByteTokenizer()
    with pytest.raises(ConfigError, match="'llama2' is not available"):
        tokenizer.load("llama2")
