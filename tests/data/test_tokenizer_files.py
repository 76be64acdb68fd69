"""Texts in which a tokenizer's own special tokens are written out, in every kind of tokenizer."""

import itertools
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import mistral_common
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from transfusion_jax.data import tokenizer
from transfusion_jax.data.marks import Marks
from transfusion_jax.data.tokenizer import ByteTokenizer, SpecialTokens
from transfusion_jax.data.tokenizer_files import HuggingFace, SentencePiece, train_byte_pairs

SPECIAL = ["<s>", "</s>", "<|im_end|>"]
LETTERS = [chr(code) for code in range(33, 127)] + ["▁"]
WORDS = ["hello", "world"]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]


def numbered(entries):
    return {entry: number for number, entry in enumerate(entries)}


def word_level(own):
    return Tokenizer(models.WordLevel(numbered(["<unk>", *own, *WORDS]), unk_token="<unk>"))


def word_piece(own):
    entries = ["<unk>", *own, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    model = Tokenizer(models.WordPiece(numbered(entries), unk_token="<unk>"))
    model.pre_tokenizer, model.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(cleanup=False)
    return model


def unigram(own):
    scores = [*(("<unk>", 0.0), *((name, 0.0) for name in own)), *((entry, -9.0) for entry in [*LETTERS, *WORDS])]
    model = Tokenizer(models.Unigram(scores, 0))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return model


def byte_level(own, merges=(), **options):
    made = ["".join(pair) for pair in merges]
    entries = [*own, *BYTES, *(entry for entry in made if entry not in own)]
    model = Tokenizer(models.BPE(numbered(entries), list(merges), **options))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not options)
    model.decoder = decoders.ByteLevel()
    return model


def byte_level_whole_words(own):
    """As Llama 3's: a word that is an entry is that entry."""
    return byte_level(own, ignore_merges=True)


def byte_level_merging(own):
    """Whose merges make a special token."""
    return byte_level(own, [("<", "/"), ("s", ">"), ("</", "s>")] if "</s>" in own else [("<", "/")])


def byte_fallback(own):
    """As Llama 2's."""
    entries = ["<unk>", *own, *FALLBACK, *LETTERS]
    model = Tokenizer(models.BPE(numbered(entries), [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model.decoder = decoders.Sequence(parts)
    return model


def prefixed_pairs(own):
    """Byte pairs whose parts within words are marked, as WordPiece's."""
    merges = [("<", "##/"), ("</", "##s"), ("</s", "##>")] if "</s>" in own else []
    entries = ["<unk>", *own, *LETTERS, *(f"##{letter}" for letter in LETTERS), "</", "</s"]
    options = {"unk_token": "<unk>", "continuing_subword_prefix": "##"}
    model = Tokenizer(models.BPE(numbered(entries), merges, **options))
    model.pre_tokenizer, model.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(cleanup=False)
    return model


EXACT = (byte_level, byte_level_whole_words, byte_level_merging, byte_fallback)  # decoding gives the text back
LOOSE = (unigram,)  # but for spaces
LOSSY = (word_level, word_piece, prefixed_pairs)  # an unknown word is lost


@cache
def hugging_face(kind, in_vocabulary, added):
    """A tokenizer.json; its special tokens may be entries of the model, and added ones, flagged or not."""
    model = kind(SPECIAL if in_vocabulary else [])
    if added is not None:
        model.add_tokens([AddedToken(name, special=added == "special", normalized=False) for name in SPECIAL])
    return HuggingFace(model.to_str().encode())


KINDS = [
    (kind, in_vocabulary, added)
    for kind in (*EXACT, *LOOSE, *LOSSY)
    for in_vocabulary, added in itertools.product((True, False), ("special", "ordinary", None))
    if in_vocabulary or added
]
PARTS = st.one_of(
    st.sampled_from([*SPECIAL, *WORDS, " ", "<", "/s>", "s>", "|"]), st.text("ab<>/s| é日", max_size=3)
)
TEXTS = st.lists(PARTS, min_size=1, max_size=6).map("".join)


def special_ids(model):
    """Entries that no text may become."""
    return {model.bos, model.eos, *model.stops, model.find("<s>"), model.find("</s>")}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, (kind[0].__name__, *kind[1:]))))
def test_text_never_becomes_a_special_token(kind):
    model = replace(hugging_face(*kind), marks=None)
    ends = Marks(model.find("<s>"), model.find("</s>"), (model.find("<|im_end|>"),))
    model = replace(model, marks=ends) if kind[2] != "special" else model  # of those, the file itself knows
    special = special_ids(model) | {model.find("<|im_end|>")}
    assert None not in special

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(text=TEXTS)
    def check(text):
        ids = model.encode(text)
        assert special.isdisjoint(ids.tolist())
        if kind[0] in EXACT:
            assert model.decode(ids) == text
        if kind[0] in LOOSE and text.isascii():
            assert model.decode(ids).replace(" ", "") == text.replace(" ", "")

    check()
    for name, form in itertools.product(SPECIAL, ("{}", "{} hello", "hello {}", "hello{}world", "{0}{0}", " {} ")):
        check.hypothesis.inner_test(form.format(name))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, (kind[0].__name__, *kind[1:]))))
def test_a_text_without_special_tokens_is_encoded_as_the_library_does(kind):
    ours = hugging_face(*kind)
    theirs = Tokenizer.from_str(ours.content.decode())
    for text in ("hello world", "a < b", "s> / <", "日本 é", ""):
        assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids


def test_special_tokens_are_decoded_and_found_as_before():
    model = hugging_face(byte_level, True, "special")
    assert [model.token(entry) for entry in (0, 1, 2)] == SPECIAL
    assert model.decode(np.array([*model.encode("a</s>"), model.eos])) == "a</s>"


@cache
def sentence_piece():
    return (Path(mistral_common.__file__).parent / "data/tokenizer.model.v1").read_bytes()


def with_types(**types):
    """Llama 2's kind of model, with entries of other types: 1 normal, 3 control, 4 given by the user."""
    model = sentencepiece_model_pb2.ModelProto.FromString(sentence_piece())
    for at, (name, kind) in enumerate(types.items()):
        piece = model.pieces[5000 + at]
        piece.piece, piece.type, piece.score = {"end": "<|im_end|>", "turn": "<turn>"}[name], kind, 0.0
    return model.SerializeToString()


@pytest.mark.parametrize("kind", [1, 3, 4], ids=["normal", "control", "given by the user"])
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(text=TEXTS)
def test_text_never_becomes_a_mark_of_sentencepiece(kind, text):
    model = sentence_piece_of(kind)
    ids = model.encode(text)
    assert {1, 2, 5000}.isdisjoint(ids.tolist())
    assert model.decode(ids) == text


@cache
def sentence_piece_of(kind):
    return SentencePiece(with_types(end=kind, turn=4), marks=Marks(1, 2, (5000,)))


def test_what_sentencepiece_calls_a_users_token_stays_one_where_it_is_no_mark():
    model = sentence_piece_of(4)
    assert 5001 in model.encode("a <turn> b")
    assert {5000, 5001} & set(model.encode("a <turn> b <|im_end|>").tolist()) == {5001}


@pytest.mark.parametrize(
    "model", [ByteTokenizer(), train_byte_pairs(["</s> hello world"] * 9, 300)], ids=["bytes", "bpe"]
)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(text=TEXTS)
def test_tokenizers_without_special_tokens_have_theirs_beyond_all_texts(model, text):
    special = SpecialTokens.of(model)
    ids = model.encode(text)
    assert {special.bos, special.eos, special.boi, special.eoi, special.pad}.isdisjoint(ids.tolist())
    assert model.decode(ids) == text


def test_a_text_that_the_tokenizer_cannot_write_has_no_ids():
    bare = HuggingFace(Tokenizer(models.WordLevel(numbered(WORDS))).to_str().encode())
    assert bare.encode("hello").tolist() == [0]
    assert bare.encode("bye").tolist() == []
    values = json.loads(word_level(SPECIAL).to_str())
    values["model"]["unk_token"] = "</s>"  # an unknown word would end the document
    ended = HuggingFace(json.dumps(values).encode())
    assert ended.encode("hello").tolist() == [4]
    assert ended.encode("bye").tolist() == ended.encode("</s>").tolist() == []


def test_files_beside_a_tokenizer_name_marks_that_no_text_becomes(tmp_path):
    model = byte_level([])
    model.add_tokens([AddedToken("<end>", special=False)])
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    found = tokenizer.load_tokenizer(tmp_path / "tokenizer.json")
    assert found.eos == 256
    assert found.eos not in found.encode("the <end>")
    assert found.decode(found.encode("the <end>")) == "the <end>"
