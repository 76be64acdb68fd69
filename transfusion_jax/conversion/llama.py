"""Llama checkpoints of Hugging Face: into the trunk, embedding and text head of a model, and back.

Both sides turn pairs (i, i + head_dim / 2) in their rotary embeddings, so that matrices are taken as they are, but
for their layout: Hugging Face's are `[out, in]`, one per layer; ours `[in, out]`, stacked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.config import SPECIAL_TOKENS, ModelConfig, require
from transfusion_jax.conversion.shards import Part, Shards, read_fields
from transfusion_jax.conversion.trees import Tree
from transfusion_jax.data.datasets import Codec
from transfusion_jax.training.checkpoint.checksums import Box
from transfusion_jax.training.checkpoint.chunks import CHUNK, Leaf, boxes

LAYER = {  # the end of our leaf's name, under LAYERS: Hugging Face's, under model.layers.N
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
HEAD = "lm_head.weight"
LAYERS = "trunk/layers/"
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
VOCABULARY = ("embedding", "text_head")
PLAIN: dict[str, Any] = {  # what must hold of a config.json, where it says anything
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "qkv_bias": False,
    "use_bias": False,
    "sliding_window": None,
    "use_sliding_window": False,
    "attention_chunk_size": None,
    "layer_types": None,
    "no_rope_layers": None,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "rope_type": "default",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "query_pre_attn_scalar": None,
    "attention_multiplier": None,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "scale_emb": 1.0,
    "scale_depth": None,
    "clip_qkv": None,
    "qk_norm": False,
    "use_qk_norm": False,
    "num_experts": None,
    "num_local_experts": None,
    "parallel_attn": False,
    "alibi": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "quantization_config": None,
    "compression_config": None,
    "auto_map": None,
    "model_type": "llama",
}
TAKEN = (  # fields with a meaning here, or with none for the model's function
    *SIZES,
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"),
    *("initializer_range", "attention_dropout", "pretraining_tp", "use_cache"),
    *("architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "is_llama_config"),
    *("return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward"),
    *("problem_type", "id2label", "label2id"),
)
LONGEST = 2048  # LlamaConfig's max_position_embeddings


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
        config = read_fields(path, *SIZES)
        for name in (*SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings"):
            found = config.get(name)
            wanted = (found is None and name not in SIZES) or (type(found) is int and found > 0)
            require(wanted, f"{path}: {name} is {found!r}, but must be a positive whole number")
        for name, value in PLAIN.items():
            found = config.get(name, value)
            require(found in (value, None), f"{path}: {name} is {found!r}, which this model has no part for")
        ropes: dict[str, dict[str, Any]] = {}
        for name in ("rope_parameters", "rope_scaling"):
            ropes[name] = rope = config.get(name) or {}
            require(isinstance(rope, dict), f"{path}: {name} is {rope!r}, but must be an object or null")
            kind = rope.get("rope_type", rope.get("type", "default"))
            require(
                kind == "default",
                f"{path}: {name}: rotary embeddings are scaled ({kind}), which is not supported",
            )
            part = rope.get("partial_rotary_factor", 1.0)
            require(part == 1, f"{path}: {name}: partial_rotary_factor is {part}, which is not supported")
        numbers = {name: config.get(name, 1) for name in ("rms_norm_eps", "rope_theta")}
        numbers |= {f"{name}.rope_theta": rope.get("rope_theta", 1) for name, rope in ropes.items()}
        for name, found in numbers.items():
            require(
                type(found) in (int, float) and 0 < found < math.inf,
                f"{path}: {name} is {found!r}, but must be a positive number",
            )
        heads, shared = config["num_attention_heads"], config.get("num_key_value_heads") or 1
        require(
            heads % shared == 0,
            f"{path}: num_key_value_heads is {shared}, but must divide num_attention_heads, {heads}",
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
        wanted = tensor_shapes(self.config)
        if self.config.get("tie_word_embeddings", False) and HEAD not in self.shards.files:
            del wanted[HEAD]
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
        rope = c.get("rope_scaling") or c.get("rope_parameters") or {}
        theta = rope.get("rope_theta", c.get("rope_theta", 10_000.0))
        return {
            "width": c["hidden_size"],
            "layers": c["num_hidden_layers"],
            "heads": c["num_attention_heads"],
            "mlp_width": c["intermediate_size"],
            "rope_theta": float(theta),
            "norm_epsilon": float(c.get("rms_norm_eps", 1e-6)),
        }

    @property
    def longest(self) -> int:
        """The longest context that it was trained on, in elements."""
        found: int = self.config.get("max_position_embeddings") or LONGEST
        return found

    @property
    def unknown(self) -> list[str]:
        """Fields of its `config.json` that no Llama has, which are not used."""
        return sorted(self.config.keys() - {*PLAIN, *TAKEN})

    @property
    def repeats(self) -> int:
        """How many of our key and value heads are the same, for grouped queries."""
        return _repeats(self.config)

    def leaf(self, name: str, shape: tuple[int, ...], model: ModelConfig) -> Leaf:
        """Our leaf of a name, float32. A pass over it raises ConfigError where a number is not finite."""
        make = self._entries if name in VOCABULARY else self._layers if name.startswith(LAYERS) else self._tensor
        return Leaf("float32", shape, lambda: ((box, make(name, box, model)) for box in boxes(shape)))

    def _layers(self, name: str, box: Box, model: ModelConfig) -> np.ndarray:
        kind = name.removeprefix(LAYERS)
        return np.stack([self._layer(kind, layer) for layer in range(model.layers)[box[0]]])

    def _layer(self, kind: str, layer: int) -> np.ndarray:
        tensor = self._read(f"model.layers.{layer}.{LAYER[kind]}")
        if kind in ("attention/key", "attention/value") and self.repeats > 1:
            groups = tensor.reshape(self.config["num_attention_heads"] // self.repeats, -1, tensor.shape[-1])
            tensor = np.repeat(groups, self.repeats, axis=0).reshape(-1, tensor.shape[-1])
        return tensor.T

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
        weight = f"{name}.weight"
        if weight == HEAD and HEAD not in self.shards.files:  # tied
            weight = f"{ENDS['embedding']}.weight"
        part = self.shards.read(weight, box).astype(np.float32)
        require(bool(np.all(np.isfinite(part))), f"{weight} holds numbers that are not finite")
        return part


def llama_leaf_names() -> list[str]:
    """Our leaves that a Llama has."""
    return [*ENDS, *(f"{LAYERS}{name}" for name in LAYER)]


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the Llama that a `config.json` describes."""
    wide, hidden = config["hidden_size"], config["intermediate_size"]
    grouped = wide // _repeats(config)
    layer = {
        "self_attn.k_proj": (grouped, wide),
        "self_attn.v_proj": (grouped, wide),
        "mlp.gate_proj": (hidden, wide),
        "mlp.up_proj": (hidden, wide),
        "mlp.down_proj": (wide, hidden),
        "input_layernorm": (wide,),
        "post_attention_layernorm": (wide,),
    }
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], wide)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{number}.{theirs}.weight": layer.get(theirs, (wide, wide)) for theirs in LAYER.values()
        }
    return shapes | {"model.norm.weight": (wide,), HEAD: (config["vocab_size"], wide)}


def tensor_parts(tree: Tree, model: ModelConfig) -> Iterator[Part]:
    """The parts of Hugging Face's tensors, as `shards.write` takes them: the vocabulary without its padding."""
    used = model.vocabulary + SPECIAL_TOKENS
    for name, theirs in ENDS.items():
        for box, value in tree[name].pieces():
            if name == "text_head":
                box, value = box[::-1], value.T
            if name in VOCABULARY:
                value = value[: max(0, used - box[0].start)]
            yield f"{theirs}.weight", box, value
    for name, theirs in LAYER.items():
        for box, value in tree[f"{LAYERS}{name}"].pieces():
            for layer, matrix in zip(range(model.layers)[box[0]], value, strict=True):
                yield f"model.layers.{layer}.{theirs}.weight", (), matrix.T


def config_json(model: ModelConfig, longest: int, codec: Codec, dtype: str) -> dict[str, Any]:
    """The `config.json` of our text path as a Llama, of texts with `longest` elements at most."""
    eos, *stops = codec.ends
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.heads,
        "intermediate_size": model.mlp_width,
        "vocab_size": model.vocabulary + SPECIAL_TOKENS,
        "max_position_embeddings": longest,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": codec.special.bos,
        "eos_token_id": [eos, *stops] if stops else eos,
        "pad_token_id": codec.special.pad,
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


def _repeats(config: dict[str, Any]) -> int:
    heads: int = config["num_attention_heads"]
    return heads // (config.get("num_key_value_heads") or heads)
