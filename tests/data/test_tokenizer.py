import dataclasses
import inspect
import pickle
import unicodedata
from pathlib import Path

import mistral_common
import numpy as np
import pytest
import tokenizers
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import SPECIAL_TOKENS, ConfigError
from transfusion_jax.data import tokenizer
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.tokenizer import ByteTokenizer, SpecialTokens
from transfusion_jax.data.tokenizer_files import HuggingFace
from transfusion_jax.evaluation.suites.loss import bytes_of

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


@pytest.fixture(scope="module")
def llama_like(tmp_path_factory):
    """A real SentencePiece model with 32,000 entries, and the path of the file."""
    path = Path(mistral_common.__file__).parent / "data/tokenizer.model.v1"
    return tokenizer.load_tokenizer(path), path


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A byte-level BPE trained here, with special tokens, and the path of its tokenizer.json."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([inspect.getsource(inspect)], trainer)
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    model.save(str(path))
    return tokenizer.load_tokenizer(path), path


def test_sentencepiece_encodes_as_the_models_own_library_does(llama_like):
    ours, path = llama_like
    theirs = MistralTokenizer.from_file(str(path)).instruct_tokenizer.tokenizer
    assert (ours.size, ours.bos, ours.eos) == (theirs.n_words, theirs.bos_id, theirs.eos_id) == (32_000, 1, 2)
    for text in [*TEXTS, "Hello world.  Two spaces", "<s>not special</s>"]:
        assert ours.encode(text).tolist() == theirs.encode(text, bos=False, eos=False)


def test_special_tokens_are_the_models_own_where_it_has_them(llama_like, hugging_face):
    assert dataclasses.astuple(SpecialTokens.of(llama_like[0])) == (1, 2, 32_002, 32_003, 32_004)
    assert dataclasses.astuple(SpecialTokens.of(hugging_face[0])) == (0, 1, 402, 403, 404)
    assert SpecialTokens.of(ByteTokenizer()) == SpecialTokens.after(256)


@pytest.mark.parametrize("text", [text for text in TEXTS if "\0" not in text])
def test_texts_survive_a_round_trip_through_models(text, llama_like, hugging_face):
    for model, _ in (llama_like, hugging_face):
        tokens = model.encode(text)
        assert tokens.dtype == np.int32
        assert len(tokens) == 0 or 0 <= tokens.min() <= tokens.max() < model.size
        assert unicodedata.normalize("NFKC", model.decode(tokens)) == unicodedata.normalize("NFKC", text)


def test_hugging_face_encodes_as_the_library_does_but_for_special_tokens_in_the_text(hugging_face):
    ours, path = hugging_face
    theirs = tokenizers.Tokenizer.from_file(str(path))
    for text in TEXTS:
        assert ours.encode(text).tolist() == theirs.encode(text).ids
    injected = "a <|end_of_text|> in a text"
    assert ours.eos in theirs.encode(injected).ids
    assert ours.eos not in ours.encode(injected)
    assert ours.decode(ours.encode(injected)) == injected


def test_models_decode_ids_beyond_their_own_as_replacement_characters(llama_like, hugging_face):
    for model, _ in (llama_like, hugging_face):
        tokens = [*model.encode("ab"), model.size, model.size + 4, *model.encode("cd")]
        assert model.decode(np.array(tokens)).replace(" ", "") == "ab\ufffd\ufffdcd"


def with_byte_fallback():
    """A tokenizer.json as Llama 2's: spaces are ▁, one stands before each text, and what has no entry is bytes."""
    kinds, parts = tokenizers.normalizers, tokenizers.decoders
    entries = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "é", "▁a", "\ufffd"]
    model = tokenizers.models.BPE(
        {entry: number for number, entry in enumerate(entries)}, [("▁", "a")], byte_fallback=True, unk_token="<unk>"
    )
    whole = tokenizers.Tokenizer(model)
    whole.normalizer = kinds.Sequence([kinds.Prepend("▁"), kinds.Replace(" ", "▁")])
    whole.decoder = parts.Sequence(
        [parts.Replace("▁", " "), parts.ByteFallback(), parts.Fuse(), parts.Strip(" ", 1, 0)]
    )
    return HuggingFace(whole.to_str().encode())


@pytest.mark.parametrize("kind", ["bytes", "byte-level", "SentencePiece", "byte fallback"])
def test_wherever_a_text_is_cut_its_tokens_add_up_to_its_bytes(kind, llama_like, hugging_face):
    """Even within a character of several tokens, whose parts are no text."""
    models = {
        "bytes": ByteTokenizer(),
        "byte-level": hugging_face[0],
        "SentencePiece": llama_like[0],
        "byte fallback": with_byte_fallback(),
    }
    codec = Codec(models[kind], SpecialTokens.of(models[kind]), Identity(), None)
    for text in ["a", "naïve café", "日本語 中文", "👩‍👩‍👧 family 👍🏽", "\U0010ffff" * 3, "a \ufffd é", " a  b"]:
        tokens = codec.tokenizer.encode(text)
        assert codec.tokenizer.decode(tokens) == text
        before = np.concatenate([[codec.special.bos], tokens[:-1]])
        whole = len(text.encode())
        for cut in range(len(tokens) + 1):
            parts = [bytes_of(tokens[s], codec, before[s]) for s in (slice(cut), slice(cut, None))]
            assert sum(parts) == whole
            assert min(parts) >= 0
        ended = np.append(tokens, [codec.special.eos, codec.special.bos, codec.special.pad])
        assert bytes_of(ended, codec, np.append(before, tokens[-1:].repeat(3))) == whole  # marks are no text


def test_a_saved_tokenizer_is_the_same_elsewhere(llama_like, hugging_face, tmp_path):
    for model in (llama_like[0], hugging_face[0], ByteTokenizer()):
        tokenizer.save_tokenizer(model, tmp_path)
        again = tokenizer.load_saved_tokenizer(tmp_path, model.name)
        assert tokenizer.hash_of(again) == tokenizer.hash_of(model)
        copied = pickle.loads(pickle.dumps(model))
        assert (
            again.encode("one two").tolist()
            == model.encode("one two").tolist()
            == copied.encode("one two").tolist()
        )
    hashes = {tokenizer.hash_of(m) for m in (llama_like[0], hugging_face[0], ByteTokenizer())}
    assert len(hashes) == 3


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_files_that_are_no_tokenizers_are_named(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=f"{name} cannot be read"):
        tokenizer.load_tokenizer(tmp_path / name)
    with pytest.raises(ConfigError, match="there is no such file"):
        tokenizer.load_tokenizer(tmp_path / f"missing-{name}")


def test_the_config_names_the_tokenizer():
    assert tokenizer.load_tokenizer("bytes") == ByteTokenizer()
    with pytest.raises(ConfigError, match=r"tokenizer llama2: give 'bytes', a SentencePiece \.model"):
        tokenizer.load_tokenizer("llama2")
