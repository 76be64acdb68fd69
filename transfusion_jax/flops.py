"""Parameters of a model by part, and 6ND. Exact operations are the model's own: `Model.flops`."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax

from transfusion_jax.config import PATCHES, ModelConfig
from transfusion_jax.model.transfusion import Model


@dataclass(frozen=True)
class Parameters:
    """Parameters by part."""

    trunk: int  # what one element goes through
    patch_trunk: int  # with untied modality weights: what patches go through in its place
    embedding: int  # rows that are in use: tokenizer and special tokens
    text_head: int  # 0 where it is the embedding
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
    tables = [params[name] for name in ("embedding", "text_head") if name in params]
    patch_trunk = size(params["trunk"]["layers"].get(PATCHES, {}))
    return Parameters(
        trunk=size(params["trunk"]) - patch_trunk,
        patch_trunk=patch_trunk,
        embedding=in_use,
        text_head=in_use * (len(tables) - 1),
        patch_coder=size(params.get("patch_coder", {})),
        image_entries=len(tables) * codes,
        padding=size(tables) - len(tables) * (in_use + codes),
    )


def six_nd(config: ModelConfig, elements: float) -> float:
    """6ND: the paper's measure of training compute.

    It leaves out attention's quadratic term (the paper's footnote 15), and the patch coder, whose parameters are
    not of N: with the U-Net the paper's smallest model takes 2.6 times the FLOPs that it takes with the linear
    coder. Families of different coders compare by `Model.flops`.
    """
    return 6.0 * count_parameters(config).paper * elements
