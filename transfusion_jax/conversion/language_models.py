"""Language models of Hugging Face (Llama, SmolLM2, Qwen2, Qwen3): into a model's text path, and back.

Both sides turn pairs (i, i + head_dim / 2) in their rotary embeddings, so that matrices are taken as they are, but
for their layout: Hugging Face's are `[out, in]`, one per layer; ours `[in, out]`, stacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.config import SPECIAL_TOKENS, ModelConfig, require
from transfusion_jax.conversion.architectures import (
    ARCHITECTURES,
    PLAIN,
    SIZES,
    TAKEN,
    WITHOUT_WINDOW,
    TextArchitecture,
    architecture_of,
    check_config,
    head_counts,
    rotary_fields,
    text_architecture,
)
from transfusion_jax.conversion.shards import Part, Shards, Tensors, read_fields
from transfusion_jax.conversion.trees import Tree
from transfusion_jax.training.checkpoint.checksums import Box
from transfusion_jax.training.checkpoint.chunks import CHUNK, Leaf, boxes

LAYER = {  # the end of our leaf's name, under LAYERS: Hugging Face's, under model.layers.N
    "attention/query": "self_attn.q_proj.weight",
    "attention/key": "self_attn.k_proj.weight",
    "attention/value": "self_attn.v_proj.weight",
    "attention/output": "self_attn.o_proj.weight",
    "attention_norm/scale": "input_layernorm.weight",
    "mlp/gate": "mlp.gate_proj.weight",
    "mlp/up": "mlp.up_proj.weight",
    "mlp/down": "mlp.down_proj.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ENDS = {"embedding": EMBEDDING, "trunk/final_norm/scale": "model.norm.weight", "text_head": HEAD}
LAYERS = "trunk/layers/"
VOCABULARY = ("embedding", "text_head")


@dataclass(frozen=True)
class LanguageModel:
    """A checkpoint's sizes and its tensors."""

    config: dict[str, Any]
    tensors: Tensors

    @classmethod
    def open(cls, folder: Path, tensors: Tensors | None = None) -> LanguageModel:
        """Reads a folder's `config.json` and the names of its tensors.

        Args:
            folder: as transformers saves it.
            tensors: those of the model, where the folder has none.

        Raises:
            ConfigError: there is none, or it cannot be represented exactly.
        """
        path = folder / "config.json"
        config = read_fields(path, *SIZES)
        check_config(config, str(path))
        tensors = tensors or Shards.of(folder)
        if HEAD in tensors.files:  # transformers ties only what is not there
            config = config | {"tie_word_embeddings": False}
        found = cls(config, tensors)
        found.check()
        return found

    def check(self) -> None:
        """Requires every tensor that the sizes ask for, in its shape, and no other.

        Raises:
            ConfigError: they are others.
        """
        wanted = tensor_shapes(self.config)
        there = {name for name in self.tensors.files if not name.endswith("rotary_emb.inv_freq")}
        lacking, odd = sorted(wanted.keys() - there), sorted(there - wanted.keys())
        require(not lacking, f"the checkpoint lacks {', '.join(lacking[:3])}")
        require(not odd, f"the checkpoint has {', '.join(odd[:3])}, which this model has no part for")
        for name, shape in wanted.items():
            found = self.tensors.shape(name)
            require(found == shape, f"{name} is {found}, and config.json asks for {shape}")

    @property
    def architecture(self) -> TextArchitecture:
        """Its kind."""
        return architecture_of(self.config)

    @property
    def model(self) -> dict[str, Any]:
        """The fields of a `ModelConfig` that it gives."""
        c = self.config
        heads, key_heads, channels = head_counts(c)
        return {
            "width": c["hidden_size"],
            "layers": c["num_hidden_layers"],
            "heads": heads,
            "kv_heads": 0 if key_heads == heads else key_heads,
            "head_dim": 0 if channels * heads == c["hidden_size"] else channels,
            "mlp_width": c["intermediate_size"],
            "norm_epsilon": float(c.get("rms_norm_eps", 1e-6)),
            "tied_embeddings": bool(c.get("tie_word_embeddings", False)),
            **self.architecture.model,
            **rotary_fields(c),
        }

    @property
    def longest(self) -> int:
        """The longest context that it was trained on, in elements."""
        found: int = self.config.get("max_position_embeddings") or self.architecture.longest
        return found

    @property
    def unknown(self) -> list[str]:
        """Fields of its `config.json` that none of its kind has, which are not used."""
        windows = WITHOUT_WINDOW if self.architecture.windows else ()
        return sorted(self.config.keys() - {*PLAIN, *TAKEN, *windows})

    def leaf(self, name: str, shape: tuple[int, ...], model: ModelConfig) -> Leaf:
        """Our leaf of a name, float32. A pass over it raises ConfigError where a number is not finite."""
        make = self._entries if name in VOCABULARY else self._layers if name.startswith(LAYERS) else self._tensor
        return Leaf("float32", shape, lambda: ((box, make(name, box, model)) for box in boxes(shape)))

    def _layers(self, name: str, box: Box, model: ModelConfig) -> np.ndarray:
        theirs = (LAYER | dict(self.architecture.leaves))[name.removeprefix(LAYERS)]
        layers = range(model.layers)[box[0]]
        return np.stack([self._read(f"model.layers.{layer}.{theirs}").T for layer in layers])

    def _entries(self, name: str, box: Box, model: ModelConfig) -> np.ndarray:
        """The tokenizer's entries as they are, and the mean of them for every entry that is new."""
        entries, along = box if name == "embedding" else box[::-1]
        part = np.empty((entries.stop - entries.start, along.stop - along.start), np.float32)
        known = slice(entries.start, max(entries.start, min(entries.stop, model.vocabulary)))
        count = known.stop - known.start
        if count:
            part[:count] = self._read(ENDS[name], (known, along))
        if count < len(part):
            part[count:] = self._mean(ENDS[name], along, model.vocabulary)
        return part if name == "embedding" else part.T

    def _mean(self, name: str, along: slice, entries: int) -> np.ndarray:
        step = max(1, CHUNK // (along.stop - along.start))
        blocks = (slice(begin, min(begin + step, entries)) for begin in range(0, entries, step))
        total = sum(self._read(name, (block, along)).sum(0, dtype=np.float64) for block in blocks)
        mean: np.ndarray = total / entries
        return mean

    def _tensor(self, name: str, box: Box, model: ModelConfig) -> np.ndarray:
        del model
        return self._read(ENDS[name], box)

    def _read(self, name: str, box: Box = ()) -> np.ndarray:
        if name == HEAD and self.config.get("tie_word_embeddings", False):
            name = EMBEDDING
        part = self.tensors.read(name, box).astype(np.float32)
        require(bool(np.all(np.isfinite(part))), f"{name} holds numbers that are not finite")
        return part


def language_model_leaves() -> set[str]:
    """Our leaves that some language model has."""
    layer = {*LAYER, *(name for kind in ARCHITECTURES.values() for name in kind.leaves)}
    return {*ENDS, *(f"{LAYERS}{name}" for name in layer)}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the language model that a `config.json` describes."""
    wide, hidden = config["hidden_size"], config["intermediate_size"]
    heads, key_heads, channels = head_counts(config)
    queries, keys = heads * channels, key_heads * channels
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (queries, wide),
        "self_attn.k_proj.weight": (keys, wide),
        "self_attn.v_proj.weight": (keys, wide),
        "self_attn.o_proj.weight": (wide, queries),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.q_norm.weight": (channels,),
        "self_attn.k_norm.weight": (channels,),
        "mlp.gate_proj.weight": (hidden, wide),
        "mlp.up_proj.weight": (hidden, wide),
        "mlp.down_proj.weight": (wide, hidden),
        "input_layernorm.weight": (wide,),
        "post_attention_layernorm.weight": (wide,),
    }
    names = [*LAYER.values(), *architecture_of(config).leaves.values()]
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config["vocab_size"], wide)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{theirs}": layer[theirs] for theirs in names}
    shapes["model.norm.weight"] = (wide,)
    return shapes if config.get("tie_word_embeddings", False) else shapes | {HEAD: (config["vocab_size"], wide)}


def tensor_parts(tree: Tree, model: ModelConfig) -> Iterator[Part]:
    """The parts of Hugging Face's tensors, as `write_tensors` takes them: the vocabulary without its padding."""
    used = model.vocabulary + SPECIAL_TOKENS
    for name, theirs in ENDS.items():
        if name not in tree:  # tied
            continue
        for box, value in tree[name].pieces():
            if name == "text_head":
                box, value = box[::-1], value.T
            if name in VOCABULARY:
                value = value[: max(0, used - box[0].start)]
            yield theirs, box, value
    for name, theirs in {**LAYER, **text_architecture(model).leaves}.items():
        for box, value in tree[f"{LAYERS}{name}"].pieces():
            for layer, matrix in zip(range(model.layers)[box[0]], value, strict=True):
                yield f"model.layers.{layer}.{theirs}", (), matrix.T
