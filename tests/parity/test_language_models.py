"""The trunk and the text head against language models of transformers with the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers import media_of
from transfusion_jax.config import ModelConfig
from transfusion_jax.conversion.architectures import text_architecture
from transfusion_jax.conversion.language_models import LAYER
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
    compute_dtype="float32",
)
KINDS = {  # what a model has beside a Llama 2's, and what its config.json says of it
    "llama-2": ({}, dict(model_type="llama")),
    "smollm2": (
        dict(kv_heads=2, tied_embeddings=True),
        dict(model_type="llama", num_key_value_heads=2, tie_word_embeddings=True),
    ),
    "llama-3": (
        dict(
            kv_heads=1,
            head_dim=24,
            rope_theta=500_000.0,
            rope_scaling="llama3",
            rope_factor=8.0,
            rope_original_context=64,
        ),
        dict(
            model_type="llama",
            num_key_value_heads=1,
            head_dim=24,
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=500_000.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "linear": (
        dict(rope_scaling="linear", rope_factor=4.0),
        dict(model_type="llama", rope_parameters=dict(rope_type="linear", rope_theta=10_000.0, factor=4.0)),
    ),
    "qwen2.5": (
        dict(kv_heads=2, attention_bias=True, tied_embeddings=True),
        dict(model_type="qwen2", num_key_value_heads=2, tie_word_embeddings=True),
    ),
    "qwen3": (
        dict(kv_heads=2, head_dim=32, query_key_norm=True, query_key_norm_kind="rms"),
        dict(model_type="qwen3", num_key_value_heads=2, head_dim=32),
    ),
}
ROWS = 3
LENGTHS = (16, 300)  # within one block of queries, and over two


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_logits_loss_and_gradients_equal_theirs(implementation, length, kind):
    ours, theirs = KINDS[kind]
    config = dataclasses.replace(CONFIG, attention=implementation, **ours)
    random = np.random.default_rng(0)
    tokens = random.integers(0, CONFIG.padded_vocabulary, (ROWS, length))
    positions = np.cumsum(random.integers(1, 4, (ROWS, length)), axis=1)  # with gaps, other ones in each row

    network = random_network(theirs)
    expected_logits, expected_loss = their_loss(network, torch.tensor(tokens), torch.tensor(positions))
    expected_loss.backward()
    expected_gradients = as_ours({name: p.grad for name, p in network.named_parameters()}, config)

    model = Model(config)
    params = model.init(jax.random.key(0)) | as_ours(dict(network.named_parameters()), config)
    value_and_gradients = jax.jit(jax.value_and_grad(text_loss, argnums=1, has_aux=True), static_argnums=0)
    (loss, logits), gradients = value_and_gradients(model, params, jnp.asarray(tokens), jnp.asarray(positions))

    np.testing.assert_allclose(logits, expected_logits.detach(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(loss, expected_loss.detach(), rtol=1e-5)
    assert set(gradients) - set(expected_gradients) == {"patch_coder"}
    assert jax.tree.structure(gradients["trunk"]) == jax.tree.structure(expected_gradients["trunk"])
    for path, expected in jax.tree.leaves_with_path(expected_gradients):
        found = gradients
        for entry in path:
            found = found[entry.key]
        size = np.abs(expected).max()
        if "key_bias" in jax.tree_util.keystr(path) and kind == "qwen2.5":
            size = max(size, 1e-2)  # where positions hardly turn keys, a bias of all of them changes nothing
        assert size > 0, jax.tree_util.keystr(path)
        np.testing.assert_allclose(found / size, expected / size, atol=1e-4, err_msg=jax.tree_util.keystr(path))


def random_network(theirs):
    """A small one in float32 whose every weight, norms and biases included, is random."""
    values = dict(
        hidden_size=CONFIG.width,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        num_key_value_heads=CONFIG.heads,
        intermediate_size=CONFIG.mlp_width,
        vocab_size=CONFIG.padded_vocabulary,
        max_position_embeddings=2048,
        rms_norm_eps=CONFIG.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta},
        tie_word_embeddings=False,
        attn_implementation="eager",
        dtype="float32",
    )
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(values | theirs)))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 and "bias" not in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.1)
    return network


def their_loss(network, tokens, positions):
    """Logits, and the mean next-token loss over all rows."""
    visible = torch.ones_like(tokens)  # without it, a gap in the positions would start a new document
    logits = network(input_ids=tokens, position_ids=positions, attention_mask=visible).logits
    return logits, torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def text_loss(model, params, tokens, positions):
    """The same loss and logits from `Model`, with rows that hold no image."""
    rows, length = tokens.shape
    index = jnp.broadcast_to(jnp.arange(length), (rows, length))
    no_image = media_of(jnp.zeros((rows, 1, *CONFIG.latent_shape)), CONFIG)
    timesteps = jnp.zeros((rows, 1), jnp.int32)
    x, _ = model.bind(params).embed(tokens, jnp.full_like(index, -1), no_image, timesteps)
    hidden, _ = model.bind(params).trunk(x, Spans(jnp.zeros_like(index), index + 1), positions)
    logits = model.bind(params).text_logits(hidden)
    likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
    return -likelihood.mean(), logits


def as_ours(tensors, config):
    """Their tensors by name, weights or gradients, in the tree that `Model` has for them."""
    arrays = {name: tensor.detach().numpy().T for name, tensor in tensors.items()}
    stacks: dict = {}
    for ours, theirs in {**LAYER, **text_architecture(config).leaves}.items():
        *parents, leaf = ours.split("/")
        place = stacks
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = np.stack([arrays[f"model.layers.{i}.{theirs}"] for i in range(config.layers)])
    found = {
        "embedding": arrays["model.embed_tokens.weight"].T,
        "trunk": {"layers": stacks, "final_norm": {"scale": arrays["model.norm.weight"]}},
    }
    return found if config.tied_embeddings else found | {"text_head": arrays["lm_head.weight"]}
