"""GGUF files of llama.cpp: their tensors under Hugging Face's names, and their metadata as Hugging Face's files.

Needs the package `gguf`. Quantised tensors are dequantised row by row, as they are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.config import ConfigError, require
from transfusion_jax.conversion.architectures import ARCHITECTURES
from transfusion_jax.conversion.language_models import EMBEDDING, HEAD
from transfusion_jax.errors import UserError
from transfusion_jax.storage.atomic import write_whole
from transfusion_jax.training.checkpoint.checksums import Box

SUFFIX = ".gguf"
LAYER = {  # the end of a tensor's name, under blk.N: Hugging Face's, under model.layers.N
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
ENDS = {"token_embd.weight": EMBEDDING, "output_norm.weight": "model.norm.weight", "output.weight": HEAD}
SIZES = {  # fields of config.json: those of the metadata, under the architecture's name
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
MARKS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
INTERLEAVED = "llama"  # whose queries and keys llama.cpp turns in pairs (2i, 2i + 1)
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {  # by tokenizer.ggml.pre: how texts are cut before pairs are merged; None: as GPT-2
    "default": None,
    "gpt-2": None,
    "smollm": "digits",
    "llama-bpe": LLAMA_3,
    "qwen2": LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}"),
}
WHOLE = ("llama-bpe",)  # whose pieces that are entries are not merged; and BOS goes first unless the file says not
CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type


@dataclass(frozen=True)
class GGUFFile:
    """An open file; tensors stay on disk until they are read."""

    path: Path
    reader: Any  # gguf.GGUFReader

    @classmethod
    def open(cls, path: Path) -> GGUFFile:
        """Opens a file.

        Raises:
            UserError: the package gguf is not installed.
            ConfigError: it is no GGUF file, or of an architecture that is not read.
        """
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise UserError(
                "reading GGUF files needs the package gguf: pip install 'transfusion-jax[gguf]'"
            ) from error
        require(path.is_file(), f"{path} is missing")
        try:
            found = cls(path, GGUFReader(path))
        except (ValueError, IndexError, KeyError) as error:
            raise ConfigError(f"{path} is no GGUF file, or damaged: {error}") from error
        require(
            found.architecture in ARCHITECTURES,
            f"{path}: general.architecture is {found.architecture!r}, which this model has no part for; "
            f"it takes {', '.join(ARCHITECTURES)}",
        )
        parts = found.field("split.count") or 1
        require(parts == 1, f"{path} is one of {parts} files: merge them first, by llama.cpp's gguf-split --merge")
        for kind in {tensor.tensor_type for tensor in found.reader.tensors}:
            require(
                _is_read(kind), f"{path} has tensors of the type {kind.name}, which the package gguf cannot read"
            )
        return found

    @property
    def architecture(self) -> str:
        """Its kind, named as `model_type` of a config.json."""
        return str(self.field("general.architecture"))

    def field(self, name: str) -> Any:
        """A field of the metadata; None where there is none. A float32 is the shortest number that rounds to it.

        Raises:
            ConfigError: it is a text that is not UTF-8.
        """
        found = self.reader.fields.get(name)
        try:
            value = None if found is None else found.contents()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.path}: {name} is no UTF-8 text: {error}") from error
        return float(str(np.float32(value))) if isinstance(value, float) else value

    @cached_property
    def _tensors(self) -> Mapping[str, Any]:
        tensors = {}
        for tensor in self.reader.tensors:
            tensors[_their_name(tensor.name, self.path)] = tensor
        return tensors

    @property
    def files(self) -> dict[str, Path]:
        """Tensors by Hugging Face's name, each in this file."""
        return dict.fromkeys(self._tensors, self.path)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, as Hugging Face has it."""
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def read(self, name: str, box: Box) -> np.ndarray:
        """A part of a tensor, float32 where it is quantised."""
        from gguf.quants import dequantize

        tensor, (rows, *rest) = self._tensors[name], box or (slice(None),)
        chosen = self._rows(name)[rows] if self._turned(name) else rows
        values: np.ndarray = dequantize(tensor.data[chosen], tensor.tensor_type)
        return values[(slice(None), *rest)]

    def _turned(self, name: str) -> bool:
        return self.architecture == INTERLEAVED and name.endswith(("q_proj.weight", "k_proj.weight"))

    def _rows(self, name: str) -> np.ndarray:
        """The rows in Hugging Face's order: the first channels of all pairs of a head, and then the second."""
        rows = self.shape(name)[0]
        queries = self.field(f"{self.architecture}.attention.head_count")
        heads = queries if "q_proj" in name else self._key_heads(queries)
        return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def _key_heads(self, queries: int) -> int:
        found: int = self.field(f"{self.architecture}.attention.head_count_kv") or queries
        return found


def write_metadata(file: GGUFFile, folder: Path) -> None:
    """Writes `config.json`, `tokenizer.json` and `tokenizer_config.json` of a file, as Hugging Face has them.

    A `tokenizer.json` that stands beside the file counts in place of the file's own tokenizer.

    Raises:
        ConfigError: its tokenizer or its rotary embeddings are of a kind that is not read.
    """
    kind = file.architecture
    tokens = file.field("tokenizer.ggml.tokens")
    require(bool(tokens), f"{file.path} has no tokenizer")
    sizes = {ours: file.field(f"{kind}.{theirs}") for ours, theirs in SIZES.items()}
    config = {name: value for name, value in sizes.items() if value is not None}
    config |= {name: file.field(f"tokenizer.ggml.{theirs}") for name, theirs in MARKS.items()}
    config |= {"model_type": kind, "vocab_size": len(tokens), "tie_word_embeddings": HEAD not in file.files}
    config |= _rotary(file, config)
    write_whole(folder / "config.json", json.dumps(config))
    beside = file.path.with_name("tokenizer.json")
    write_whole(folder / "tokenizer.json", beside.read_bytes() if beside.is_file() else _tokenizer(file, tokens))
    first = file.field("tokenizer.ggml.add_bos_token")
    begins = file.field("tokenizer.ggml.pre") in WHOLE if first is None else bool(first)
    about: dict[str, Any] = {"add_bos_token": begins}
    if template := file.field("tokenizer.chat_template"):
        about["chat_template"] = template
    for name in ("bos", "eos"):
        number = config[f"{name}_token_id"]
        if number in range(len(tokens)):  # who reads config.json refuses others
            about[f"{name}_token"] = tokens[number]
    write_whole(folder / "tokenizer_config.json", json.dumps(about))


def _rotary(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of scaled rotary embeddings; as in llama.cpp a factor without a type is linear."""
    kind = file.architecture
    scaling, factor, old, turned = (
        file.field(f"{kind}.rope.{name}")
        for name in ("scaling.type", "scaling.factor", "scale_linear", "dimension_count")
    )
    require(scaling in (None, "none", "linear"), f"{file.path}: rope.scaling.type is {scaling!r}: read safetensors")
    width, heads, channels = (config.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
    if channels is None and isinstance(width, int) and isinstance(heads, int) and heads:
        channels = width // heads
    require(
        turned in (None, channels),
        f"{file.path}: rope.dimension_count is {turned}, of {channels} channels of a head, which is not supported",
    )
    factor = factor or old
    if scaling == "linear" or (scaling is None and factor):
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    return {}


def _is_read(kind: Any) -> bool:
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _tokenizer(file: GGUFFile, tokens: list[str]) -> str:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    model, split = (file.field(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    require(
        model == "gpt2" and split in SPLITS,
        f"{file.path}: its tokenizer is {model!r}, and cuts texts as {split!r}, which is not read: put its "
        "tokenizer.json beside the file",
    )
    merges = [tuple(merge.split(" ")) for merge in file.field("tokenizer.ggml.merges") or []]
    require(bool(merges), f"{file.path} has no tokenizer.ggml.merges: put its tokenizer.json beside the file")
    entries = {token: i for i, token in enumerate(tokens)}
    require(len(entries) == len(tokens), f"{file.path}: tokenizer.ggml.tokens holds a token twice")
    for merge in merges:
        known = len(merge) == 2 and entries.keys() >= {*merge, "".join(merge)}
        require(known, f"{file.path}: tokenizer.ggml.merges has {' '.join(merge)!r}, which makes no token")
    found = Tokenizer(models.BPE(vocab=entries, merges=merges, ignore_merges=split in WHOLE))
    by_bytes, pattern = pre_tokenizers.ByteLevel, SPLITS[split]
    if pattern is None:
        found.pre_tokenizer = by_bytes(add_prefix_space=False)
    elif pattern == "digits":
        digits = pre_tokenizers.Digits(individual_digits=True)
        found.pre_tokenizer = pre_tokenizers.Sequence([digits, by_bytes(add_prefix_space=False)])
    else:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        found.pre_tokenizer = pre_tokenizers.Sequence([cut, by_bytes(add_prefix_space=False, use_regex=False)])
    if split == "qwen2":
        found.normalizer = normalizers.NFC()
    found.decoder = decoders.ByteLevel()
    kinds = file.field("tokenizer.ggml.token_type") or []
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (CONTROL, USER_DEFINED):
            mark = AddedToken(token, special=kind == CONTROL, normalized=False)
            (found.add_special_tokens if kind == CONTROL else found.add_tokens)([mark])
    text: str = found.to_str()
    return text


def _their_name(name: str, path: Path) -> str:
    if name in ENDS:
        return ENDS[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    part, _, end = rest.rpartition(".")
    require(
        name.startswith("blk.") and block.isdigit() and part in LAYER,
        f"{path} has the tensor {name}, which this model has no part for",
    )
    return f"model.layers.{block}.{LAYER[part]}.{end}"
