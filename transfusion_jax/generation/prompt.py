"""Prompts as rows: what stands before the part that the model makes."""

from __future__ import annotations

import numpy as np

from transfusion_jax.config import Config, ConfigError
from transfusion_jax.data.assemble import Piece, empty_row, lay_out, place
from transfusion_jax.data.batch import Batch, stack
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.load import Codec

ROUND_TO = 32  # row lengths are rounded up, so that few shapes are compiled


def image_rows(prompts: list[str], config: Config, codec: Codec) -> Batch:
    """Rows `BOS prompt BOI patches EOI` whose image is blank: the place to draw in.

    An empty prompt gives `BOS BOI …`, guidance's other branch.
    """
    blank = Image(np.zeros(config.model.latent_shape, np.float32))
    documents = [Document((Text(codec.tokenizer.encode(prompt)), blank)) for prompt in prompts]
    return _rows(documents, config, codec, room=0)[0]


def text_rows(documents: list[Document], config: Config, codec: Codec, room: int) -> tuple[Batch, np.ndarray]:
    """Rows that begin with documents and leave room for new text, and each document's length `[S]`."""
    return _rows(documents, config, codec, room)


def _rows(documents: list[Document], config: Config, codec: Codec, room: int) -> tuple[Batch, np.ndarray]:
    lengths = np.array([d.length(config.model.patches) for d in documents])
    check_length(int(lengths.max()) + room, config)
    size = min(-(-(int(lengths.max()) + room) // ROUND_TO) * ROUND_TO, config.data.context_length)
    rows = []
    for number, (document, length) in enumerate(zip(documents, lengths, strict=True)):
        row = empty_row(number, size, max(d.images for d in documents) or 1, config, codec.special)
        layout = lay_out(document, config.model, codec.special)
        place(row, 0, 0, layout, Piece(document, 0, int(length), 0), document, config)
        row.span_start[:] = 0  # text that comes after it belongs to the same document
        row.positions[:] = np.arange(size)
        row.image_weight[:] = 0
        rows.append(row)
    return stack(rows), lengths


def check_length(length: int, config: Config) -> None:
    """Raises ConfigError where prompt and result do not fit the context."""
    limit = config.data.context_length
    if length > limit:
        raise ConfigError(
            f"the prompt and what is to be made take {length} elements, and the model's context is {limit}: "
            "shorten the prompt"
        )
