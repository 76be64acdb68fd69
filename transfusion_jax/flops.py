"""Floating-point operations of training: 6ND, and exact counts from what a batch holds."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from transfusion_jax.config import PATCH_CODERS, ModelConfig
from transfusion_jax.model.transformer import PATCHES
from transfusion_jax.model.transfusion import Model

FORWARD_AND_BACKWARD = 3  # the backward pass costs two forward passes

# Dense peak by device kind, FLOP/s in bfloat16, from the vendors' data sheets.
PUBLISHED_PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


@dataclass(frozen=True)
class Parameters:
    """Parameters by part."""

    trunk: int  # what one element goes through
    patch_trunk: int  # with untied modality weights: what patches go through in its place
    embedding: int  # rows that are in use: tokenizer and special tokens
    text_head: int
    patch_coder: int
    image_entries: int  # of embedding and head: codes of images
    padding: int  # rows of embedding and head that only pad the vocabulary, and the special tokens'

    @property
    def paper(self) -> int:
        """Trunk and untied embeddings over the tokenizer's entries, as the paper's table 2 counts a model."""
        return self.trunk + self.embedding + self.text_head

    @property
    def total(self) -> int:
        """Everything that is allocated."""
        return self.paper + self.patch_trunk + self.patch_coder + self.image_entries + self.padding


@functools.cache  # a search asks for each of its candidates
def count_parameters(config: ModelConfig) -> Parameters:
    """Parameters of a model, counted from its own tree; allocates nothing."""
    params = Model(config).abstract_params()

    def size(tree: Any) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    in_use, codes = config.vocabulary * config.width, config.codebook * config.width
    patch_trunk = size(params["trunk"]["layers"].get(PATCHES, {}))
    return Parameters(
        trunk=size(params["trunk"]) - patch_trunk,
        patch_trunk=patch_trunk,
        embedding=in_use,
        text_head=in_use,
        patch_coder=size(params.get("patch_coder", {})),
        image_entries=2 * codes,
        padding=size([params["embedding"], params["text_head"]]) - 2 * (in_use + codes),
    )


def six_nd(config: ModelConfig, elements: float) -> float:
    """6ND: the paper's measure of training compute.

    It leaves out attention's quadratic term (the paper's footnote 15), and the patch coder, whose parameters are
    not of N: with the U-Net the paper's smallest model takes 2.6 times the FLOPs that it takes with the linear
    coder. Families of different coders compare by `step_flops`.
    """
    return 6.0 * count_parameters(config).paper * elements


def step_flops(config: ModelConfig, elements: Any, text_losses: Any, images: Any, span_area: Any) -> Any:
    """Exact operations of a forward and a backward pass, padding and recomputation not counted.

    Args:
        config: the model.
        elements: text tokens and patches, padding left out.
        text_losses: elements whose next token, or code, is predicted: the text head runs on these.
        images: images embedded and denoised.
        span_area: Σ over elements of the keys that each may attend to.

    Numbers or arrays alike.
    """
    per_layer = 4 * config.width**2 + 3 * config.width * config.mlp_width
    trunk = 2.0 * config.layers * per_layer * elements
    attention = 4.0 * config.layers * config.width * span_area
    head = 2.0 * config.width * config.padded_vocabulary * text_losses
    coder = coder_flops(config) * images
    return FORWARD_AND_BACKWARD * (trunk + attention + head + coder)


def coder_flops(config: ModelConfig) -> float:
    """Operations of the patch coder on one image, embedded and denoised, forward; of codes there is none."""
    if config.images != "latents":
        return 0.0
    flops: float = PATCH_CODERS[config.patch_coder].flops(config)
    return flops


def peak_flops(device: Any) -> tuple[float, str]:
    """FLOP/s that a device can reach, and whether that is "published" or "measured" (a float32 matrix product)."""
    if device.device_kind in PUBLISHED_PEAK:
        return PUBLISHED_PEAK[device.device_kind], "published"
    return measured_peak(), "measured"


def measured_peak(size: int = 1024, rounds: int = 20) -> float:
    """FLOP/s of a float32 matrix product on the default device, the best of a few rounds."""
    product = jax.jit(jnp.dot)
    x = jnp.ones((size, size))
    product(x, x).block_until_ready()
    best = math.inf
    for _ in range(rounds):
        begin = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
