"""`Batch`: what a training step reads, a frozen pytree of static shapes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int32

from transfusion_jax.config import Config, ModelConfig
from transfusion_jax.model.spans import Spans

Rows = TypeVar("Rows")
TEXT = -1  # image_slot of an element that is no patch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """B rows of T elements with room for N images each; arrays are NumPy on the host, JAX on devices."""

    tokens: Int32[Any, "B T"]  # PAD where there is a patch of a latent or nothing
    targets: Int32[Any, "B T"]  # the next element's token
    token_weight: Float32[Any, "B T"]  # 1 where the next token is to be predicted
    positions: Int32[Any, "B T"]  # place in the document
    span_start: Int32[Any, "B T"]
    span_end: Int32[Any, "B T"]
    image_slot: Int32[Any, "B T"]  # which of the row's images; TEXT (−1) for the rest
    patch_index: Int32[Any, "B T"]  # which patch of that image
    source: Int32[Any, "B T"]  # index of the source; −1 for padding
    latents: Float32[Any, "B N h w c"]  # normalised; h w c are 0 where images are codes, or there are none
    image_weight: Float32[Any, "B N"]  # 1 where the image bears a loss
    timestep_limit: Int32[Any, "B N"]  # highest timestep to train; 0 keeps the image clean
    image_first: Bool[Any, "B N"]  # whether the image precedes its caption
    image_source: Int32[Any, "B N"]  # −1 for an empty slot
    row: Int32[Any, " B"]  # the row's number in the stream

    @property
    def spans(self) -> Spans:
        """The attention mask."""
        return Spans(self.span_start, self.span_end)


def stack(rows: list[Rows]) -> Rows:
    """One batch of single rows of any kind (arrays without the leading B)."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def latent_shape(model: ModelConfig) -> tuple[int, int, int]:
    """The shape of one image in `Batch.latents`."""
    return model.latent_shape if model.images == "latents" else (0, 0, 0)


def abstract_batch(config: Config, rows: int | None = None) -> Batch:
    """Shapes and dtypes of a batch; `rows` defaults to the config's."""
    b, t, n = rows or config.batch_rows, config.data.context_length, config.data.max_images
    per_element = dict.fromkeys(ELEMENT_FIELDS, ((b, t), np.int32))
    per_image = dict.fromkeys(IMAGE_FIELDS, ((b, n), np.int32))
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        **per_element,
        **per_image,
        "token_weight": ((b, t), np.float32),
        "image_weight": ((b, n), np.float32),
        "image_first": ((b, n), np.bool_),
        "latents": ((b, n, *latent_shape(config.model)), np.float32),
        "row": ((b,), np.int32),
    }
    return Batch(**{f.name: jax.ShapeDtypeStruct(*shapes[f.name]) for f in dataclasses.fields(Batch)})


def bytes_of_batch(batch: Batch) -> int:
    """Bytes of all its arrays, or of their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(batch))


ELEMENT_FIELDS = (
    "tokens",
    "targets",
    "token_weight",
    "positions",
    "span_start",
    "span_end",
    "image_slot",
    "patch_index",
    "source",
)
IMAGE_FIELDS = ("image_weight", "timestep_limit", "image_first", "image_source")
