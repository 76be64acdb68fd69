"""Which entries begin and end documents, by the files that stand beside a tokenizer."""

import json
import pickle

import numpy as np
import pytest
import tokenizers as library

from helpers import prepare
from transfusion_jax.config import ConfigError
from transfusion_jax.data import tokenizer
from transfusion_jax.data.marks import KEPT, Marks
from transfusion_jax.data.tokenizer import Numbers, SpecialTokens

WORDS = ["<s>", "</s>", "[BEGIN]", "[END]", "a", "cat"]
SIZE = len(WORDS)
CONFIG, NAMES, MAP, WRITING = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)


def folder_of(path, files, words=WORDS):
    """A folder with a tokenizer of words and these files."""
    model = library.Tokenizer(library.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    model.pre_tokenizer = library.pre_tokenizers.Whitespace()
    path.mkdir(exist_ok=True)
    model.save(str(path / "tokenizer.json"))
    for name, values in files.items():
        (path / name).write_text(json.dumps(values))
    return path / "tokenizer.json"


FILES = {  # what the files say; BOS, EOS and the other ends
    "nothing": ({}, (0, 1, ())),
    "config": ({CONFIG: {"bos_token_id": 2, "eos_token_id": 3}}, (2, 3, ())),
    "several ends": ({CONFIG: {"bos_token_id": 2, "eos_token_id": [3, 1, 5]}}, (2, 3, (1, 5))),
    "ends of writing": (
        {CONFIG: {"bos_token_id": 2, "eos_token_id": 3}, WRITING: {"eos_token_id": [1, 3]}},
        (2, 3, (1,)),
    ),
    "ends of writing alone": ({WRITING: {"eos_token_id": [3, 1]}}, (None, 3, (1,))),
    "names": ({NAMES: {"bos_token": "[BEGIN]", "eos_token": {"content": "[END]"}}}, (2, 3, ())),
    "names in the map": ({NAMES: {}, MAP: {"bos_token": "[BEGIN]", "eos_token": "[END]"}}, (2, 3, ())),
    "both": (
        {CONFIG: {"bos_token_id": 2, "eos_token_id": 3}, NAMES: {"bos_token": "<s>", "eos_token": "</s>"}},
        (2, 3, ()),
    ),
    "names where the config has none": (
        {CONFIG: {"bos_token_id": None, "eos_token_id": 3}, NAMES: {"bos_token": "[BEGIN]"}},
        (2, 3, ()),
    ),
    "no BOS": ({CONFIG: {"bos_token_id": None, "eos_token_id": 3}}, (3, 3, ())),
    "neither": ({CONFIG: {"bos_token_id": None, "eos_token_id": None}}, (None, None, ())),
    "one for both": ({CONFIG: {"bos_token_id": 3, "eos_token_id": 3}}, (3, 3, ())),
    "names that are no entries": ({NAMES: {"bos_token": "<other>", "eos_token": "[END]"}}, (None, 3, ())),
    "another project's config": ({CONFIG: {"model": {"width": 4}}}, (0, 1, ())),
}


@pytest.mark.parametrize("case", FILES)
def test_marks_are_those_of_the_files_beside_the_tokenizer(case, tmp_path):
    files, expected = FILES[case]
    said = []
    found = tokenizer.load_tokenizer(folder_of(tmp_path / "theirs", files), said.append)
    assert (found.bos, found.eos, found.stops) == expected
    own = SpecialTokens.after(SIZE)
    special = SpecialTokens.of(found)
    assert special.bos == (own.bos if expected[0] is None else expected[0])
    assert special.eos == (own.eos if expected[1] is None else expected[1])
    assert f"begins with {'an entry of its own' if found.bos is None else f'{found.bos} ('}" in said[-1]
    assert sum(": using" in line for line in said) == (2 if case == "both" else 0)

    tokenizer.save_tokenizer(found, tmp_path)
    for again in (
        tokenizer.load_saved_tokenizer(tmp_path, found.name),
        tokenizer.load_tokenizer(tmp_path / found.name),
        pickle.loads(pickle.dumps(found)),
    ):
        assert (again.bos, again.eos, again.stops, again.size) == (*expected, SIZE)
        assert tokenizer.hash_of(again) == tokenizer.hash_of(found)
    plain = tokenizer.load_tokenizer(folder_of(tmp_path / "plain", {}))
    assert (tokenizer.hash_of(plain) == tokenizer.hash_of(found)) == (expected == (0, 1, ()))
    assert (tmp_path / KEPT).exists() == (expected != (0, 1, ()))


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [SIZE, -1, 1.5, "<s>", True, [1, SIZE]])
def test_ids_that_are_no_entries_are_named(name, value, tmp_path):
    path = folder_of(tmp_path / "theirs", {CONFIG: {name: value}})
    with pytest.raises(ConfigError, match=f"{name} is .*, and ids are 0 to {SIZE - 1}"):
        tokenizer.load_tokenizer(path)


@pytest.mark.parametrize("name", [CONFIG, NAMES, MAP, WRITING, KEPT])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"bos": 0'])
def test_a_damaged_file_is_named(name, text, tmp_path):
    path = folder_of(tmp_path / "theirs", {})
    (path.parent / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        tokenizer.load_tokenizer(path)


@pytest.mark.parametrize("values", [{"bos": 1}, {"bos": -1, "eos": 1, "stops": [], "size": 0}, {"stops": 3}])
def test_marks_that_are_none_are_named(values, tmp_path):
    path = folder_of(tmp_path / "theirs", {KEPT: values})
    with pytest.raises(ConfigError, match=f"{KEPT} is damaged"):
        tokenizer.load_tokenizer(path)


def test_a_model_may_have_more_entries_than_its_tokenizer(tmp_path):
    found = tokenizer.load_tokenizer(
        folder_of(tmp_path / "theirs", {CONFIG: {"vocab_size": SIZE + 2, "eos_token_id": SIZE}})
    )
    assert (found.size, found.eos, SpecialTokens.of(found).boi) == (SIZE + 2, SIZE, SIZE + 4)
    assert found.decode(np.array([5, SIZE, SIZE + 1, 4])) == "cat\ufffd\ufffda"
    fewer = tokenizer.load_tokenizer(folder_of(tmp_path / "theirs", {CONFIG: {"vocab_size": SIZE - 2}}))
    assert fewer.size == SIZE


def test_numbers_keep_the_marks_of_their_model(tmp_path):
    numbers = Numbers(20, marks=Marks(3, 4, (5,)))
    tokenizer.save_tokenizer(numbers, tmp_path)
    assert tokenizer.load_saved_tokenizer(tmp_path, numbers.name) == numbers
    assert SpecialTokens.of(numbers).bos == 3


def test_prepared_data_keep_the_marks(tmp_path):
    path = folder_of(tmp_path / "theirs", FILES["several ends"][0])
    (tmp_path / "texts.jsonl").write_text('{"text": "a cat"}\n' * 3)
    found = prepare(tmp_path / "data", [str(tmp_path / "texts.jsonl")], tokenizer=str(path)).tokenizer
    assert (found.bos, found.eos, found.stops) == (2, 3, (1, 5))
