"""Llama checkpoints of Hugging Face: into the trunk, embedding and text head of a model, and back.

Both sides turn pairs (i, i + head_dim / 2) in their rotary embeddings, so that matrices are taken as they are, but
for their layout: Hugging Face's are `[out, in]`, one per layer; ours `[in, out]`, stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.config import SPECIAL_TOKENS, ModelConfig, require
from transfusion_jax.conversion.shards import Shards, read_json
from transfusion_jax.data.tokenizer import SpecialTokens, Tokenizer

LAYER = {  # the end of our leaf's name, under trunk/layers: Hugging Face's, under model.layers.N
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "attention_norm/scale": "input_layernorm",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
    "mlp_norm/scale": "post_attention_layernorm",
}
ENDS = {
    "embedding": "model.embed_tokens",
    "trunk/final_norm/scale": "model.norm",
    "text_head": "lm_head",
}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
VOCABULARY = ("embedding", "text_head")
PLAIN = {  # what must hold of a config.json, where it says anything
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "use_sliding_window": False,
    "model_type": "llama",
}


@dataclass(frozen=True)
class Llama:
    """A checkpoint's sizes and its tensors."""

    config: dict[str, Any]
    shards: Shards

    @classmethod
    def open(cls, folder: Path) -> Llama:
        """Reads a folder's `config.json` and the names of its tensors.

        Raises:
            ConfigError: there is none, or it cannot be represented exactly.
        """
        path = folder / "config.json"
        config = read_json(path, *SIZES)
        for name, value in PLAIN.items():
            found = config.get(name, value)
            require(found in (value, None), f"{path}: {name} is {found!r}, which this model has no part for")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        require(
            kind == "default", f"{path}: rotary embeddings are scaled ({kind}), which this model has no part for"
        )
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        require(
            head * config["num_attention_heads"] == config["hidden_size"],
            f"{path}: head_dim {head} is not hidden_size / num_attention_heads, which this model has no part for",
        )
        found = cls(config, Shards.of(folder))
        found.check()
        return found

    def check(self) -> None:
        """Requires every tensor that the sizes ask for, in its shape, and no other.

        Raises:
            ConfigError: they are others.
        """
        c = self.config
        wide, vocabulary, hidden = c["hidden_size"], c["vocab_size"], c["intermediate_size"]
        grouped = wide // self.repeats
        shapes = {
            "self_attn.k_proj": (grouped, wide),
            "self_attn.v_proj": (grouped, wide),
            "mlp.gate_proj": (hidden, wide),
            "mlp.up_proj": (hidden, wide),
            "mlp.down_proj": (wide, hidden),
            "input_layernorm": (wide,),
            "post_attention_layernorm": (wide,),
        }
        wanted = {
            f"model.layers.{layer}.{theirs}.weight": shapes.get(theirs, (wide, wide))
            for layer in range(c["num_hidden_layers"])
            for theirs in LAYER.values()
        }
        wanted |= {"model.embed_tokens.weight": (vocabulary, wide), "model.norm.weight": (wide,)}
        if not c.get("tie_word_embeddings", False) or "lm_head.weight" in self.shards.files:
            wanted["lm_head.weight"] = (vocabulary, wide)
        there = [name for name in self.shards.files if not name.endswith("rotary_emb.inv_freq")]
        lacking, odd = sorted(wanted.keys() - there), sorted(set(there) - wanted.keys())
        require(not lacking, f"the checkpoint lacks {', '.join(lacking[:3])}")
        require(not odd, f"the checkpoint has {', '.join(odd[:3])}, which this model has no part for")
        for name, shape in wanted.items():
            found = self.shards.shape(name)
            require(found == shape, f"{name} is {found}, and config.json asks for {shape}")

    @property
    def model(self) -> dict[str, Any]:
        """The fields of a `ModelConfig` that it gives."""
        c = self.config
        theta = (c.get("rope_parameters") or {}).get("rope_theta") or c.get("rope_theta", 10_000.0)
        return {
            "width": c["hidden_size"],
            "layers": c["num_hidden_layers"],
            "heads": c["num_attention_heads"],
            "mlp_width": c["intermediate_size"],
            "rope_theta": float(theta),
            "norm_epsilon": float(c.get("rms_norm_eps", 1e-6)),
        }

    @property
    def repeats(self) -> int:
        """How many of our key and value heads are the same, for grouped queries."""
        heads: int = self.config["num_attention_heads"]
        return heads // (self.config.get("num_key_value_heads") or heads)

    def leaf(self, name: str, model: ModelConfig) -> np.ndarray:
        """Our leaf of a name, float32: in memory is that leaf, twice at most, whatever the checkpoint's size.

        Raises:
            ConfigError: a number is not finite.
        """
        if name in ENDS:
            tensor = self._tensor(ENDS[name])
            return self._vocabulary(tensor, name, model) if name in VOCABULARY else tensor
        kind = name.removeprefix("trunk/layers/")
        first = self._layer(kind, 0)
        stacked = np.empty((model.layers, *first.shape), np.float32)
        for layer in range(model.layers):
            stacked[layer] = self._layer(kind, layer)
        return stacked

    def _layer(self, kind: str, layer: int) -> np.ndarray:
        tensor = self._tensor(f"model.layers.{layer}.{LAYER[kind]}")
        if kind in ("attention/key", "attention/value") and self.repeats > 1:
            groups = tensor.reshape(self.config["num_attention_heads"] // self.repeats, -1, tensor.shape[-1])
            tensor = np.repeat(groups, self.repeats, axis=0).reshape(-1, tensor.shape[-1])
        return tensor.T

    def _vocabulary(self, tensor: np.ndarray, name: str, model: ModelConfig) -> np.ndarray:
        """The tokenizer's entries as they are, and the mean of them for every entry that is new."""
        require(
            len(tensor) >= model.vocabulary,
            f"the checkpoint has {len(tensor)} entries, and the tokenizer {model.vocabulary}",
        )
        known, size = tensor[: model.vocabulary], (model.padded_vocabulary, model.width)
        leaf = np.empty(size if name == "embedding" else size[::-1], np.float32)
        rows = leaf if name == "embedding" else leaf.T
        rows[: model.vocabulary] = known
        rows[model.vocabulary :] = known.mean(0)
        return leaf

    def _tensor(self, name: str) -> np.ndarray:
        if name == "lm_head" and f"{name}.weight" not in self.shards.files:  # tied
            name = ENDS["embedding"]
        tensor = self.shards[f"{name}.weight"].astype(np.float32)
        require(bool(np.all(np.isfinite(tensor))), f"{name}.weight holds numbers that are not finite")
        return tensor


def leaf_names() -> list[str]:
    """Our leaves that a Llama has."""
    return [*ENDS, *(f"trunk/layers/{name}" for name in LAYER)]


def tensors(read: Callable[[str], np.ndarray], model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's names and tensors of our leaves, each read once; the vocabulary without its padding."""
    used = model.vocabulary + SPECIAL_TOKENS
    yield f"{ENDS['embedding']}.weight", read("embedding")[:used]
    for ours, theirs in LAYER.items():
        for layer, matrix in enumerate(read(f"trunk/layers/{ours}")):
            yield f"model.layers.{layer}.{theirs}.weight", matrix.T
    yield f"{ENDS['trunk/final_norm/scale']}.weight", read("trunk/final_norm/scale")
    yield f"{ENDS['text_head']}.weight", read("text_head")[:, :used].T


def config_json(model: ModelConfig, context: int, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """The `config.json` of our text path as a Llama."""
    special = SpecialTokens.of(tokenizer)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.heads,
        "intermediate_size": model.mlp_width,
        "vocab_size": model.vocabulary + SPECIAL_TOKENS,
        "max_position_embeddings": context,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
        "dtype": dtype,
    }


def require_llama(model: ModelConfig) -> None:
    """Raises ConfigError where the text path of a model is no Llama."""
    for field, plain in (
        ("query_key_norm", False),
        ("norm", "pre"),
        ("modality_weights", "shared"),
    ):
        value = getattr(model, field)
        require(value == plain, f"model.{field} is {value!r}: such a text path is no Llama")
    require(
        model.images != "codes", "model.images is 'codes': its vocabulary holds codes of images, and is no Llama's"
    )
