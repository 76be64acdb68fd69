"""Kinds of language models: what a `config.json` may say, and which kind the text path of a model is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transfusion_jax.config import SPECIAL_TOKENS, ConfigError, ModelConfig, require
from transfusion_jax.data.datasets import Codec

BIASES = {
    "attention/query_bias": "self_attn.q_proj.bias",
    "attention/key_bias": "self_attn.k_proj.bias",
    "attention/value_bias": "self_attn.v_proj.bias",
}
HEAD_NORMS = {
    "attention/query_norm/scale": "self_attn.q_norm.weight",
    "attention/key_norm/scale": "self_attn.k_norm.weight",
}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
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
}
TAKEN = (  # fields with a meaning here, or with none for the model's function
    *SIZES,
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters", "model_type"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"),
    *("initializer_range", "attention_dropout", "pretraining_tp", "use_cache"),
    *("architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "is_llama_config"),
    *("return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward"),
    *("problem_type", "id2label", "label2id"),
)
FULL = "full_attention"  # of all `layer_types`
WITHOUT_WINDOW = ("sliding_window", "max_window_layers")  # fields that use_sliding_window turns off


@dataclass(frozen=True)
class TextArchitecture:
    """A kind of language model that the text path of a model can be."""

    model_type: str  # of config.json
    name: str  # of transformers' class
    longest: int  # its max_position_embeddings where config.json has none
    model: Mapping[str, Any]  # fields of a `ModelConfig` that tell it from the others
    leaves: Mapping[str, str]  # beside those of `LAYER`
    must_say: tuple[str, ...] = ()  # fields of config.json beside the sizes
    windows: bool = False  # config.json has fields of a sliding window, which must be off


ARCHITECTURES = {
    found.model_type: found
    for found in (
        TextArchitecture("llama", "LlamaForCausalLM", 2048, {"attention_bias": False, "query_key_norm": False}, {}),
        TextArchitecture(
            *("qwen2", "Qwen2ForCausalLM", 32_768, {"attention_bias": True, "query_key_norm": False}, BIASES),
            must_say=("num_key_value_heads",),
            windows=True,
        ),
        TextArchitecture(
            *("qwen3", "Qwen3ForCausalLM", 32_768),
            {"attention_bias": False, "query_key_norm": True, "query_key_norm_kind": "rms"},
            HEAD_NORMS,
            must_say=("num_key_value_heads", "head_dim"),
            windows=True,
        ),
    )
}


def check_config(config: dict[str, Any], path: str) -> None:
    """Raises ConfigError where a `config.json` says what a model here cannot do; it names the field."""
    kind = architecture_of(config, path)
    for name in kind.must_say:
        require(config.get(name) is not None, f"{path} lacks {name}")
    for name in (*SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings"):
        found = config.get(name)
        wanted = (found is None and name not in SIZES) or (type(found) is int and found > 0)
        require(wanted, f"{path}: {name} is {found!r}, but must be a positive whole number")
    for name, value in PLAIN.items():
        found = config.get(name, value)
        if (kind.windows and name in WITHOUT_WINDOW) or (name == "layer_types" and _all_full(found)):
            continue
        require(found in (value, None), f"{path}: {name} is {found!r}, which this model has no part for")
    _check_rotary(config, path)
    heads, key_heads, _ = head_counts(config)
    require(
        heads % key_heads == 0,
        f"{path}: num_key_value_heads is {key_heads}, but must divide num_attention_heads, {heads}",
    )
    require(
        config.get("head_dim") is not None or config["hidden_size"] % heads == 0,
        f"{path}: num_attention_heads is {heads}, but must divide hidden_size, {config['hidden_size']}",
    )


def _all_full(layer_types: Any) -> bool:
    return isinstance(layer_types, list) and set(layer_types) == {FULL}


def _check_rotary(config: dict[str, Any], path: str) -> None:
    numbers: dict[str, Any] = {name: config.get(name, 1) for name in ("rms_norm_eps", "rope_theta")}
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name) or {}
        require(isinstance(rope, dict), f"{path}: {name} is {rope!r}, but must be an object or null")
        kind = _rope_kind(rope)
        require(
            kind in ROPE_FIELDS, f"{path}: {name}: rotary embeddings are scaled ({kind}), which is not supported"
        )
        part = rope.get("partial_rotary_factor", 1.0)
        require(part == 1, f"{path}: {name}: partial_rotary_factor is {part}, which is not supported")
        for field in ROPE_FIELDS[kind]:
            require(field in rope, f"{path}: {name} lacks {field}")
        numbers |= {f"{name}.{field}": rope.get(field, 1) for field in ("rope_theta", *ROPE_FIELDS[kind])}
    for name, found in numbers.items():
        require(
            type(found) in (int, float) and 0 < found < math.inf,
            f"{path}: {name} is {found!r}, but must be a positive number",
        )


ROPE_FIELDS: dict[str, tuple[str, ...]] = {  # of each way of scaling rotary embeddings
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _rope_kind(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type", "default")))


def rotary_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Those of a `ModelConfig`."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    found: dict[str, Any] = {"rope_theta": float(theta)}
    kind = _rope_kind(rope)
    if kind != "default":
        found |= {"rope_scaling": kind, "rope_factor": float(rope["factor"])}
    if kind == "llama3":
        found["rope_frequency_factors"] = tuple(float(rope[f"{name}_freq_factor"]) for name in ("low", "high"))
        found["rope_original_context"] = int(rope["original_max_position_embeddings"])
    return found


def architecture_of(config: dict[str, Any], path: str = "config.json") -> TextArchitecture:
    """The kind that a `config.json` names; one that names none is a Llama.

    Raises:
        ConfigError: it is none of `ARCHITECTURES`.
    """
    kind = config.get("model_type") or "llama"
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"{path}: model_type is {kind!r}, which this model has no part for; it takes {known}")
    return ARCHITECTURES[kind]


def head_counts(config: dict[str, Any]) -> tuple[int, int, int]:
    """Heads of queries, heads of keys and values, and channels of each, as a `config.json` has them."""
    heads: int = config["num_attention_heads"]
    channels: int = config.get("head_dim") or config["hidden_size"] // heads
    return heads, config.get("num_key_value_heads") or heads, channels


def config_json(model: ModelConfig, longest: int, codec: Codec, dtype: str) -> dict[str, Any]:
    """The `config.json` of our text path as a language model, of texts with `longest` elements at most."""
    kind = text_architecture(model)
    eos, *stops = codec.ends
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_theta}
    if model.rope_scaling != "none":
        rope |= {"rope_type": model.rope_scaling, "factor": model.rope_factor}
    if model.rope_scaling == "llama3":
        low, high = model.rope_frequency_factors
        rope |= {"low_freq_factor": low, "high_freq_factor": high}
        rope["original_max_position_embeddings"] = model.rope_original_context
    return {
        "architectures": [kind.name],
        "model_type": kind.model_type,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_channels,
        "intermediate_size": model.mlp_width,
        "vocab_size": model.vocabulary + SPECIAL_TOKENS,
        "max_position_embeddings": longest,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope_theta,
        "rope_parameters": rope,
        **({"rope_scaling": rope} if model.rope_scaling != "none" else {}),
        "hidden_act": "silu",
        **({"use_sliding_window": False} if kind.windows else {"mlp_bias": False}),
        **({} if model.attention_bias else {"attention_bias": False}),
        "tie_word_embeddings": model.tied_embeddings,
        "bos_token_id": codec.special.bos,
        "eos_token_id": [eos, *stops] if stops else eos,
        "pad_token_id": codec.special.pad,
        "dtype": dtype,
    }


def text_architecture(model: ModelConfig) -> TextArchitecture:
    """The kind that the text path of a model is.

    Raises:
        ConfigError: it is none of `ARCHITECTURES`.
    """
    require(model.norm == "pre", f"model.norm is {model.norm!r}: no language model has such a text path")
    scalings = ("none", *ROPE_FIELDS)
    require(
        model.rope_scaling in scalings, f"model.rope_scaling is {model.rope_scaling!r}, which no language model has"
    )
    require(
        model.images != "codes",
        "model.images is 'codes': its vocabulary holds codes of images, which no language model has",
    )
    for kind in ARCHITECTURES.values():
        if all(getattr(model, field) == value for field, value in kind.model.items()):
            return kind
    fields = dict.fromkeys(field for kind in ARCHITECTURES.values() for field in kind.model)
    values = ", ".join(f"model.{field} {getattr(model, field)!r}" for field in fields)
    raise ConfigError(f"no language model has a text path with {values}; there are {', '.join(ARCHITECTURES)}")
