"""Tokenizers and chat templates of Hugging Face's folders: read, and written as a run uses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transfusion_jax.config import ConfigError, require
from transfusion_jax.data import marks as marking
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.marks import read_object
from transfusion_jax.data.tokenizer import Numbers, SpecialTokens, Tokenizer
from transfusion_jax.data.tokenizer_files import HuggingFace, SentencePiece
from transfusion_jax.storage.atomic import write_whole

TEMPLATE = "chat_template.jinja"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")


def read_chat_template(folder: Path) -> str | None:
    """The template that chats are written by: a file of the folder, or a field of its tokenizer's config.

    Of several it is the one that is named `default`.
    """
    if (folder / TEMPLATE).is_file():
        try:
            return (folder / TEMPLATE).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{folder / TEMPLATE} is no UTF-8 text: {error}") from error
    found = read_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        named = [one for one in found if isinstance(one, dict) and one.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) else None


def read_tokenizer(folder: Path, vocabulary: int, log: Callable[[str], None]) -> tuple[Tokenizer, bool]:
    """The folder's tokenizer, or without one numbers; and whether texts begin with BOS under transformers.

    Raises:
        ConfigError: the model lacks entries of the tokenizer's.
    """
    path = next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None)
    if path is None:
        numbers = Numbers(vocabulary, marks=marking.stated(folder, vocabulary, lambda text: None, log))
        log(f"{folder} holds no {' and no '.join(TOKENIZERS)}: tokens stay numbers")
        log(tokenizers.describe_marks(numbers))
        return numbers, True
    tokenizer = tokenizers.load_tokenizer(path, log)
    require(
        tokenizer.size <= vocabulary,
        f"the checkpoint has {vocabulary} entries, and {path} has {tokenizer.size}: remove those beyond, "
        "or add rows to the checkpoint",
    )
    fast = tokenizers.load_tokenizer(folder / TOKENIZERS[1]) if (folder / TOKENIZERS[1]).is_file() else None
    if not isinstance(fast, HuggingFace):
        return tokenizer, marking.adds_bos(folder) is not False
    first, bos = fast.first, SpecialTokens.of(tokenizer).bos
    asked = marking.adds_bos(folder)
    if asked is None and first not in (None, bos):
        log(f"{fast.name} begins texts with token {first}, but here they begin with {bos}")
    return tokenizer, first is not None if asked is None else asked


def write_tokenizer(codec: Codec, longest: int, folder: Path, chat_template: str | None = None) -> None:
    """Writes the tokenizer's file and `tokenizer_config.json`; nothing where tokens are bytes or numbers.

    Args:
        codec: of the run.
        longest: elements of the longest text.
        folder: to write to.
        chat_template: of an imported model, which transformers reads from a file of its own.
    """
    if chat_template is not None:
        write_whole(folder / TEMPLATE, chat_template)
    tokenizer, special = codec.tokenizer, codec.special
    if isinstance(tokenizer, HuggingFace):
        tokenizer = HuggingFace(_with_entries(tokenizer, special, codec.bos_first))
    if not isinstance(tokenizer, HuggingFace | SentencePiece):
        return
    write_whole(folder / tokenizer.name, tokenizer.content)
    marks = {name: tokenizer.token(asdict(special)[name]) for name in ("bos", "eos", "pad")}
    about: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer" if isinstance(tokenizer, SentencePiece) else "PreTrainedTokenizerFast",
        "add_bos_token": codec.bos_first,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
    } | {f"{name}_token": text for name, text in marks.items() if text is not None}
    write_whole(folder / "tokenizer_config.json", json.dumps(about, indent=2) + "\n")


def _with_entries(tokenizer: HuggingFace, special: SpecialTokens, bos_first: bool) -> bytes:
    """The file with an entry for each id of the model, and with BOS before a text or not."""
    from tokenizers import Tokenizer, processors

    model = Tokenizer.from_str(tokenizer.content.decode())
    taken, own = model.get_vocab(), asdict(SpecialTokens.after(tokenizer.size))
    if len(taken) <= max(taken.values()):  # gaps among its ids, which the library would fill first
        return tokenizer.content
    unused = [f"<|unused{n}|>" for n in range(max(taken.values()) + 1, tokenizer.size)]
    for name in [*unused, *(f"<|{kind}|>" for kind in own)]:
        while name in taken:
            name = f"<{name}>"
        model.add_special_tokens([name])
    bos = model.id_to_token(special.bos)
    model.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"] if bos_first else ["$A"], special_tokens=[(bos, special.bos)]
    )
    whole: str = model.to_str()
    return whole.encode()
