"""A tokenizer's marks, the tokens that begin and end documents, from the files beside it.

A Hugging Face folder says so in several files, and they may disagree. The ids of `config.json` are those that its
model was trained with; then come the tokens that `tokenizer_config.json` and `special_tokens_map.json` name. A
prepared folder and a run keep what was found in a file of their own, `marks.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from transfusion_jax.config import ConfigError, require
from transfusion_jax.storage.paths import Place

KEPT = "marks.json"
MODEL, WRITING = "config.json", "generation_config.json"
NAMED = ("tokenizer_config.json", "special_tokens_map.json")  # by the tokens' texts
Find = Callable[[str], int | None]  # an entry by its text


@dataclass(frozen=True)
class Marks:
    """Special tokens of a tokenizer, by id; None where it has no such token."""

    bos: int | None = None  # begins a document
    eos: int | None = None  # ends a document
    stops: tuple[int, ...] = ()  # more tokens that end generation
    size: int = 0  # entries of the tokenizer's model, where it has more than the tokenizer

    def to_json(self) -> str:
        """What `marks.json` holds."""
        return json.dumps(asdict(self)) + "\n"


def kept_marks(folder: Place) -> Marks | None:
    """The marks that a prepared folder or a run keeps; None where its tokenizer's own hold.

    Raises:
        ConfigError: the file is damaged.
    """
    values = read_object(folder / KEPT)
    if not values:
        return None
    wrong = f"{folder / KEPT} is damaged: it does not hold bos, eos, stops and size"
    require(values.keys() == asdict(Marks()).keys() and isinstance(values["stops"], list), wrong)
    ids = [values["bos"] or 0, values["eos"] or 0, *values["stops"], values["size"]]
    require(all(_is_id(one) for one in ids), wrong)
    return Marks(values["bos"], values["eos"], tuple(values["stops"]), values["size"])


def stated(folder: Place, entries: int, find: Find, log: Callable[[str], None]) -> Marks | None:
    """The marks that the files of a Hugging Face folder give a tokenizer; None where they give none.

    Args:
        folder: where the tokenizer's file is.
        entries: how many the tokenizer has.
        find: an entry by its text.
        log: prints a line where files disagree.

    Raises:
        ConfigError: an id is no entry, or a file is no JSON.
    """
    model, writing = read_object(folder / MODEL), read_object(folder / WRITING)
    size = max(entries, model["vocab_size"] if _is_id(model.get("vocab_size")) else 0)
    named = {kind: list(_named(folder, kind, find)) for kind in ("bos", "eos")}
    ids = {kind: _ids(folder / MODEL, model, f"{kind}_token_id", size) for kind in ("bos", "eos")}
    of_writing = _ids(folder / WRITING, writing, "eos_token_id", size)
    for kind, given in ids.items():
        if given and named[kind] and named[kind][0][1] not in given:
            file, token = named[kind][0]
            log(f"{folder}: {kind.upper()} is {given[0]} in {MODEL} and {token} in {file}: using {MODEL}'s")
    said = "bos_token_id" in model or "eos_token_id" in model
    if not any((said, *named.values(), of_writing, size > entries)):
        return None
    first = {kind: next(iter([*given, *(token for _, token in named[kind])]), None) for kind, given in ids.items()}
    eos = of_writing[0] if first["eos"] is None and of_writing else first["eos"]
    joined = first["bos"] is None and "bos_token_id" in model  # by EOS: a model whose config names no BOS
    stops = tuple(sorted({*ids["eos"], *of_writing} - {eos}))
    return Marks(eos if joined else first["bos"], eos, stops, size if size > entries else 0)


def adds_bos(folder: Place) -> bool | None:
    """Whether a Hugging Face folder's tokenizer begins each text with BOS; None where it does not say."""
    found = read_object(folder / NAMED[0]).get("add_bos_token")
    return found if isinstance(found, bool) else None


def _ids(path: Place, values: dict[str, Any], key: str, size: int) -> list[int]:
    """The ids of a key, of which there may be one, several or none."""
    found = values.get(key)
    listed = found if isinstance(found, list) else [] if found is None else [found]
    for one in listed:
        require(
            _is_id(one) and one < size,
            f"{path}: {key} is {found}, and ids are 0 to {size - 1}: correct it, or make it null",
        )
    return listed


def _named(folder: Place, kind: str, find: Find) -> Iterator[tuple[str, int]]:
    """The files that name a token, and its entry."""
    for name in NAMED:
        token = read_object(folder / name).get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and (entry := find(text)) is not None:
            yield name, entry


def read_object(path: Place) -> dict[str, Any]:
    """The object of a JSON file; an empty one where there is no file.

    Raises:
        ConfigError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    require(isinstance(values, dict), f"{path} holds no object")
    found: dict[str, Any] = values
    return found


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
