"""Prompts as rows: what stands before the part that the model makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from transfusion_jax.config import Config, ConfigError, Modality
from transfusion_jax.data.batch import Batch, stack
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.row import Cursor, Piece, empty_row, lay_out, place_piece

ROUND_TO = 32  # row lengths are rounded up, so that few shapes are compiled


def prompt_of(text: str, codec: Codec) -> Document:
    """A document of this text; one without segments where it is empty."""
    tokens = codec.tokenizer.encode(text)
    return Document((Text(tokens),) if len(tokens) else ())


def before_image(document: Document, codec: Codec) -> Document:
    """The same with BOI at its end: an image is to follow."""
    return Document((*document.segments, Text(np.array([codec.special.boi], np.int32))))


def images_of(document: Document) -> Document:
    """The same without its texts."""
    return Document(tuple(s for s in document.segments if isinstance(s, Image)))


def rows_of(
    documents: list[Document], config: Config, codec: Codec, room: int = 0
) -> tuple[Batch, Int[np.ndarray, " B"]]:
    """Rows that begin with documents and leave room for more elements, and each document's length.

    A document's first element is BOS, but for a text whose codec puts none there.

    Raises:
        ConfigError: they do not fit the context.
    """
    model = config.model
    bare = np.array([not codec.bos_first and _begins_with_text(d, codec) for d in documents])
    lengths = np.array([d.length(model) for d in documents]) - bare
    longest, limit = int(lengths.max()) + room, config.data.context_length
    if longest > limit:
        raise ConfigError(
            f"the prompt and what is to be made take {longest} elements, and the model's context is {limit}: "
            "shorten the prompt"
        )
    size = min(-(-longest // ROUND_TO) * ROUND_TO, limit)
    rows, room_for = [], _room_for(documents, config)
    for number, (document, length, without) in enumerate(zip(documents, lengths, bare, strict=True)):
        row = empty_row(number, size, config, codec.special, room_for)
        layout = lay_out(document, model, codec.special)
        place_piece(row, Cursor(), layout, Piece(document, int(without), int(length), 0), document, config)
        row.span_start[:] = 0  # text that comes after it belongs to the same document
        behind = row.positions[length:]
        behind += (row.positions[:length].max() + 1 + np.arange(size - length)).reshape(
            -1, *(1,) * (behind.ndim - 1)
        )
        for media in row.media.values():
            media.weight[:] = 0
        rows.append(row)
    return stack(rows), lengths


def _room_for(documents: list[Document], config: Config) -> Mapping[str, Modality]:
    """The modalities with as much room as the largest of the documents needs."""
    images = max(d.images for d in documents)
    most = max(d.area // config.model.patch_area for d in documents)
    return {
        name: replace(modality, items=images, patches=images * modality.one_size or most)
        for name, modality in config.modalities.items()
    }


def _begins_with_text(document: Document, codec: Codec) -> bool:
    first = document.segments[0] if document.segments else None
    return isinstance(first, Text) and len(first.tokens) > 0 and first.tokens[0] < codec.tokenizer.size
