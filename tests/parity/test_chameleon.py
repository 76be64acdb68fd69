"""The trunk with Chameleon's switches against Hugging Face's Chameleon with the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from transfusion_jax.config import ModelConfig
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.transfusion import Model

pytestmark = pytest.mark.parity

CONFIG = ModelConfig(
    width=64,
    layers=3,
    heads=4,
    mlp_width=176,
    vocabulary=123,  # with the special tokens a full table of 128, so that no logit is masked
    latent_shape=(4, 4, 1),
    patch_size=2,
    query_key_norm=True,
    norm="post",
    compute_dtype="float32",
)
ROWS, LENGTH = 2, 40

LAYER = {
    "attention": {
        "query": "self_attn.q_proj.weight",
        "key": "self_attn.k_proj.weight",
        "value": "self_attn.v_proj.weight",
        "output": "self_attn.o_proj.weight",
        "query_norm": {"head_scale": "self_attn.q_norm.weight", "head_bias": "self_attn.q_norm.bias"},
        "key_norm": {"head_scale": "self_attn.k_norm.weight", "head_bias": "self_attn.k_norm.bias"},
    },
    "attention_norm": {"scale": "input_layernorm.weight"},
    "mlp": {"gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight"},
    "mlp_norm": {"scale": "post_attention_layernorm.weight"},
}


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_logits_equal_chameleons(norm):
    tokens = np.random.default_rng(0).integers(0, CONFIG.padded_vocabulary, (ROWS, LENGTH))
    chameleon = random_chameleon(swin_norm=norm == "post")
    with torch.no_grad():
        logits = chameleon(input_ids=torch.tensor(tokens)).logits.numpy()
    image_entries = chameleon.model.vocabulary_mapping.image_tokens
    assert np.all(logits[:, :, image_entries] < -1e30)  # Hugging Face masks the image's entries: compare the rest
    others = np.setdiff1d(np.arange(CONFIG.padded_vocabulary), image_entries)

    model = Model(dataclasses.replace(CONFIG, norm=norm))
    params = model.init(jax.random.key(0)) | from_chameleon(chameleon.state_dict())
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, model.abstract_params())
    found = jax.jit(lambda params: logits_of(model, params, jnp.asarray(tokens)))(params)
    np.testing.assert_allclose(found[:, :, others], logits[:, :, others], atol=1e-4, rtol=1e-4)


def random_chameleon(swin_norm):
    """A small Chameleon in float32 whose every weight, norms included, is random."""
    tiny_tokenizer = dict(base_channels=32, channel_multiplier=[1], num_res_blocks=1, resolution=8)
    config = ChameleonConfig(
        hidden_size=CONFIG.width,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        num_key_value_heads=CONFIG.heads,
        intermediate_size=CONFIG.mlp_width,
        vocab_size=CONFIG.padded_vocabulary,
        max_position_embeddings=2048,
        rms_norm_eps=CONFIG.norm_epsilon,
        swin_norm=swin_norm,
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta},
        vq_config=tiny_tokenizer | dict(num_embeddings=4, embed_dim=32, latent_channels=32),
        vocabulary_map={"<image>": 7, "IMGIMGA": 1, "IMGIMGB": 2},
        attn_implementation="eager",
        dtype="float32",
    )
    torch.manual_seed(0)
    chameleon = ChameleonForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in chameleon.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.1)
    return chameleon


def logits_of(model, params, tokens):
    rows, length = tokens.shape
    index = jnp.broadcast_to(jnp.arange(length), (rows, length))
    x, _ = model.bind(params).embed(tokens)
    hidden, _ = model.bind(params).trunk(x, Spans(jnp.zeros_like(index), index + 1), index)
    return model.bind(params).text_logits(hidden)


def from_chameleon(tensors):
    """Chameleon's tensors by name in the tree that `Model` has for them."""

    def array(name):
        tensor = tensors[name].numpy()
        return tensor.T if "_proj" in name or "lm_head" in name else tensor

    def stacked(name):
        return np.stack([array(f"model.layers.{i}.{name}") for i in range(CONFIG.layers)])

    return {
        "embedding": array("model.embed_tokens.weight"),
        "trunk": {
            "layers": jax.tree.map(stacked, LAYER),
            "final_norm": {"scale": array("model.norm.weight")},
        },
        "text_head": array("lm_head.weight"),
    }
