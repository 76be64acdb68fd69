"""Edited scenes of coloured shapes, as many as are asked for, from a seed alone.

Every other document is a story: a caption, its drawing, what to change, and the changed drawing. The rest begin
with the drawing, as context without a loss: what an editor is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from transfusion_jax.data.readers import shapes
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RawImage, RawText
from transfusion_jax.worlds.shapes import edits, scenes


def shards(path: str, options: ReadOptions) -> list[InputShard]:
    """Ranges of the documents; `path` is as of `shapes`.

    Raises:
        ConfigError: the path says something else.
    """
    return shapes.ranges("edits", path, options)


def read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    """Documents with drawings at `options.image_size`; the scenes before and after stand in their meta."""
    count, seed, arrangement = shapes.parse_name("edits", shard.path)
    for index in range(shard.begin, shard.end or count):
        scene, caption = shapes.example(seed, index, arrangement)
        rng = np.random.default_rng([seed, index, 2])  # the caption was made from [seed, index, 1]
        edit = edits.choose_edit(scene, rng)
        request = edits.describe_edit(edit, scene, rng)
        before, after = (scenes.render(s, options.image_size) for s in (scene, edit.after))
        segments: tuple[RawText | RawImage, ...] = (
            RawText(caption),
            RawImage(before),
            RawText(request),
            RawImage(after),
        )
        if index % 2:
            segments = (RawImage(before, loss=False), RawText(request, loss=False), RawImage(after))
        meta = {"seed": seed, "index": index, "before": asdict(scene), "edit": asdict(edit)}
        yield RawDocument(str(index), segments, meta)


FORMAT = Format(shards, read, options=("shard_size",), is_set=True)
