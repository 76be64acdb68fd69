"""The trunk and the text head against Hugging Face's Llama with the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from transfusion_jax.config import ModelConfig
from transfusion_jax.conversion.llama import LAYER
from transfusion_jax.model.spans import Spans
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
ROWS = 3
LENGTHS = (16, 300)  # within one block of queries, and over two


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_logits_loss_and_gradients_equal_llamas(implementation, length):
    random = np.random.default_rng(0)
    tokens = random.integers(0, CONFIG.padded_vocabulary, (ROWS, length))
    positions = np.cumsum(random.integers(1, 4, (ROWS, length)), axis=1)  # with gaps, other ones in each row

    llama = random_llama()
    expected_logits, expected_loss = llama_loss(llama, torch.tensor(tokens), torch.tensor(positions))
    expected_loss.backward()
    expected_gradients = from_llama({name: p.grad for name, p in llama.named_parameters()})

    model = Model(dataclasses.replace(CONFIG, attention=implementation))
    params = model.init(jax.random.key(0)) | from_llama(dict(llama.named_parameters()))
    value_and_gradients = jax.jit(jax.value_and_grad(text_loss, argnums=1, has_aux=True), static_argnums=0)
    (loss, logits), gradients = value_and_gradients(model, params, jnp.asarray(tokens), jnp.asarray(positions))

    np.testing.assert_allclose(logits, expected_logits.detach(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(loss, expected_loss.detach(), rtol=1e-5)
    assert set(gradients) - set(expected_gradients) == {"patch_coder"}
    for path, expected in jax.tree.leaves_with_path(expected_gradients):
        found = gradients
        for entry in path:
            found = found[entry.key]
        size = np.abs(expected).max()
        assert size > 0, jax.tree_util.keystr(path)
        np.testing.assert_allclose(found / size, expected / size, atol=1e-4, err_msg=jax.tree_util.keystr(path))


def random_llama():
    """A small Llama in float32 whose every weight, norms included, is random."""
    config = LlamaConfig(
        hidden_size=CONFIG.width,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
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
    llama = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in llama.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.1)
    return llama


def llama_loss(llama, tokens, positions):
    """Logits, and the mean next-token loss over all rows."""
    visible = torch.ones_like(tokens)  # without it, a gap in the positions would start a new document
    logits = llama(input_ids=tokens, position_ids=positions, attention_mask=visible).logits
    return logits, torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def text_loss(model, params, tokens, positions):
    """The same loss and logits from `Model`, with rows that hold no image."""
    rows, length = tokens.shape
    index = jnp.broadcast_to(jnp.arange(length), (rows, length))
    no_image = jnp.full((rows, length), -1)
    latents, timesteps = jnp.zeros((rows, 1, *CONFIG.latent_shape)), jnp.zeros((rows, 1), jnp.int32)
    x, _ = model.bind(params).embed(tokens, no_image, jnp.zeros_like(index), latents, timesteps)
    hidden, _ = model.bind(params).trunk(x, Spans(jnp.zeros_like(index), index + 1), positions)
    logits = model.bind(params).text_logits(hidden)
    likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
    return -likelihood.mean(), logits


def from_llama(tensors):
    """Llama's tensors by name, weights or gradients, in the tree that `Model` has for them."""
    arrays = {name.removesuffix(".weight"): tensor.detach().numpy().T for name, tensor in tensors.items()}
    layers = range(CONFIG.layers)

    def stacked(name):
        return np.stack([arrays[f"model.layers.{i}.{name}"] for i in layers])

    stacks: dict = {}
    for ours, theirs in LAYER.items():
        part, leaf = ours.split("/")
        stacks.setdefault(part, {})[leaf] = stacked(theirs)
    return {
        "embedding": arrays["model.embed_tokens"].T,
        "trunk": {
            "layers": stacks,
            "final_norm": {"scale": arrays["model.norm"]},
        },
        "text_head": arrays["lm_head"],
    }
