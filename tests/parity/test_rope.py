"""Rotary embeddings and norms of heads beside Hugging Face's.

Positions of three axes are Qwen2-VL's, heads are turned by them as in Qwen3-VL, frequencies are scaled as
Llama 3's, and the RMSNorm of heads is Qwen3's.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2_vl import modeling_qwen2_vl as theirs
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_vl import modeling_qwen3_vl as newer

from helpers import random_image, random_text, special, tiny_config
from transfusion_jax.data.documents import Document
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.model.layers import frequencies, head_norm, rotary, rotate

pytestmark = pytest.mark.parity
HEADS, SECTIONS = 3, (8, 4, 4)  # by turns until height and width have theirs, and the rest is time's
HEAD_DIM, THETA = 2 * sum(SECTIONS), 10_000.0
FREQUENCY = frequencies(tiny_config(model__head_dim=HEAD_DIM, model__rope_theta=THETA).model)
SCALED = {  # theta, ours, theirs
    "linear": (10_000.0, dict(factor=4.0), {}),
    "llama3": (
        500_000.0,
        dict(factor=8.0, frequency_factors=(1.0, 4.0), original_context=8192),
        dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
    ),
}


@pytest.mark.parametrize("scaling", SCALED)
def test_frequencies_are_scaled_as_theirs(scaling):
    theta, ours, theirs = SCALED[scaling]
    changes = {f"model__rope_{name}": value for name, value in ours.items()}
    config = tiny_config(model__head_dim=128, model__rope_theta=theta, model__rope_scaling=scaling, **changes)
    parameters = dict(rope_type=scaling, rope_theta=theta, factor=ours["factor"], **theirs)
    llama = LlamaConfig(hidden_size=256, num_attention_heads=2, head_dim=128, rope_parameters=parameters)
    found = frequencies(config.model)
    np.testing.assert_allclose(found, LlamaRotaryEmbedding(llama).inv_freq, rtol=1e-5)
    unscaled = theta ** (-np.arange(0, 128, 2) / 128)
    assert found[-1] == pytest.approx(unscaled[-1] / ours["factor"], rel=1e-5)


def test_the_rms_norm_of_heads_is_qwen3s():
    config = tiny_config(model__query_key_norm=True, model__query_key_norm_kind="rms", model__head_dim=16).model
    random = np.random.default_rng(0)
    x, scale = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 3, 16), (16,)))
    ours, norm = head_norm(config, 3), Qwen3RMSNorm(16, eps=config.norm_epsilon)
    ours.scale[...] = jnp.asarray(scale)
    norm.weight.data = torch.tensor(scale)
    np.testing.assert_allclose(ours(jnp.asarray(x)), norm(torch.tensor(x)).detach(), rtol=1e-5, atol=1e-6)


def test_heads_are_turned_as_theirs():
    random = np.random.default_rng(0)
    positions = random.integers(0, 500, (2, 11, 3))
    q, k = random.standard_normal((2, 2, 11, HEADS, HEAD_DIM)).astype(np.float32)
    rotation = rotary(positions, FREQUENCY, SECTIONS)
    config = newer.Qwen3VLTextConfig(
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        head_dim=HEAD_DIM,
        rope_parameters={"rope_type": "default", "rope_theta": THETA, "mrope_section": list(SECTIONS)},
    )
    angles = newer.Qwen3VLTextRotaryEmbedding(config)(torch.zeros(1), torch.tensor(positions).permute(2, 0, 1))
    turned = newer.apply_rotary_pos_emb(torch.tensor(q), torch.tensor(k), *angles, unsqueeze_dim=2)
    for mine, expected in zip((q, k), turned, strict=True):
        np.testing.assert_allclose(rotate(mine, rotation), expected, rtol=1e-5, atol=1e-5)


def test_text_has_the_positions_of_one_axis():
    positions = np.tile(np.arange(9), (2, 1))
    one = rotary(positions, FREQUENCY)
    three = rotary(np.repeat(positions[..., None], 3, -1), FREQUENCY, SECTIONS)
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)


def test_elements_of_a_row_stand_where_theirs_do():
    """Theirs merges 2×2 patches to one element; ours are elements already."""
    random = np.random.default_rng(1)
    shapes = [(4, 6), (2, 8), (6, 4)]
    segments = [s for shape in shapes for s in (random_text(random, 3, 6), random_image(random, *shape))]
    document = Document((*segments, random_text(random, 3, 6)))
    config = tiny_config(
        model__latent_shape=(4, 6, 2), model__max_side=8, model__rope_sections=(1, 1, 2), data__context_length=64
    )
    length = document.length(config.model)
    row = assemble(0, [Piece(document, 0, length, 0)], config, special())
    their_config = theirs.Qwen2VLConfig()
    their_config.vision_config.spatial_merge_size = 1
    model = theirs.Qwen2VLModel.__new__(theirs.Qwen2VLModel)
    torch.nn.Module.__init__(model)
    model.config = their_config
    is_patch = torch.tensor(row.patch[None, :length] >= 0)
    grids = torch.tensor(row.media["images"].grid[: len(shapes)], dtype=torch.long)
    found, _ = model.get_rope_index(torch.tensor(row.tokens[None, :length]), is_patch.int(), image_grid_thw=grids)
    np.testing.assert_array_equal(row.positions[:length], found[:, 0].T)
