"""Rows whose spans are hard on an attention kernel, and arrays to attend with."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from helpers import special, tiny_config
from transfusion_jax.data.batch import stack
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.kernels.spans import Spans, check_spans

LENGTH = 48
IMAGE = Image(np.zeros((4, 4, 2), np.float32))  # four patches


def text(length: int) -> Text:
    return Text(np.arange(length, dtype=np.int32) % 20)


CUT = (text(60),)  # its elements 20 to 34 alone stand in the row
LAYOUTS = {
    "pure text": [(text(47),)],
    "one token and padding": [(text(1),)],
    "adjacent images": [(IMAGE, IMAGE, IMAGE)],
    "image at the start": [(IMAGE, text(30))],
    "image at the end": [(text(30), IMAGE)],
    "image fills to the last element": [(text(41), IMAGE)],
    "ragged packed documents": [(text(3),), (text(5), IMAGE), (text(1),), (IMAGE, text(2)), (text(7),)],
    "documents of one element": [(Text(np.zeros(0, np.int32)),)] * 5 + [(IMAGE,)],
    "nothing": [],
    "texts continued over both seams": [CUT, (IMAGE, text(2)), (text(3), IMAGE), CUT],
}


def layout_spans(names: Sequence[str]) -> Spans:
    """The spans of one row per layout, `[rows, LENGTH]`."""
    config = tiny_config(data__image_first=0.0, data__caption_dropout=0.0, data__max_images=8)
    rows = []
    for name in names:
        pieces = []
        for segments in LAYOUTS[name]:
            whole = Document(segments)
            begin, length = (20, 14) if segments is CUT else (0, whole.length(config.model))
            pieces.append(Piece(whole, begin, length, 0))
        rows.append(assemble(0, pieces, config, special()))
    spans = stack(rows).spans
    check_spans(spans)
    return spans


def random_arrays(count: int, shape: tuple[int, ...]) -> list[jax.Array]:
    return [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(1), count)]
