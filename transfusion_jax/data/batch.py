"""`Batch`: what a training step reads, a frozen pytree of static shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float32, Int32

from transfusion_jax.config import Config, Modality
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.media import Media

Rows = TypeVar("Rows")
TEXT = -1  # `patch` of an element that is none


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """B rows of T elements; arrays are NumPy on the host, JAX on devices."""

    tokens: Int32[Any, "B T"]  # PAD where there is a patch of a latent or nothing
    targets: Int32[Any, "B T"]  # the next element's token
    token_weight: Float32[Any, "B T"]  # 1 where the next token is to be predicted
    positions: Int32[Any, "B T *axes"]  # place in the document; with rotary sections one for each of three axes
    span_start: Int32[Any, "B T"]
    span_end: Int32[Any, "B T"]
    patch: Int32[
        Any, "B T"
    ]  # which patch of the row's media, those of all modalities side by side; TEXT (−1): none
    source: Int32[Any, "B T"]  # index of the source; −1 for padding
    media: Mapping[str, Media]  # by modality
    row: Int32[Any, " B"]  # the row's number in the stream

    @property
    def spans(self) -> Spans:
        """The attention mask."""
        return Spans(self.span_start, self.span_end)


def stack(rows: list[Rows]) -> Rows:
    """One batch of single rows of any kind (arrays without the leading B)."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def media_shapes(modality: Modality) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each array of a modality's media in one row."""
    items, patches = modality.items, modality.patches
    return {
        "patches": ((patches, modality.values), np.float32),
        "item": ((patches,), np.int32),
        "coords": ((patches, 3), np.int32),
        "element": ((patches,), np.int32),
        "grid": ((items, 3), np.int32),
        "weight": ((items,), np.float32),
        "timestep_limit": ((items,), np.int32),
        "comes_first": ((items,), np.bool_),
        "source": ((items,), np.int32),
    }


def positions_shape(config: Config, length: int) -> tuple[int, ...]:
    """The shape of one row's positions."""
    return (length, 3) if config.model.rope_sections else (length,)


def abstract_batch(config: Config, rows: int | None = None) -> Batch:
    """Shapes and dtypes of a batch; `rows` defaults to the config's."""
    b, t = rows or config.batch_rows, config.data.context_length

    def array(shape: tuple[int, ...], dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct((b, *shape), dtype)

    media = {
        name: Media(
            **{field: array(*about) for field, about in media_shapes(modality).items()}, one_size=modality.one_size
        )
        for name, modality in config.modalities.items()
    }
    elements = ("tokens", "targets", "span_start", "span_end", "patch", "source")
    return Batch(
        **dict.fromkeys(elements, array((t,))),
        token_weight=array((t,), np.float32),
        positions=array(positions_shape(config, t)),
        media=media,
        row=array(()),
    )


def bytes_of_batch(batch: Batch) -> int:
    """Bytes of all its arrays, or of their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(batch))
