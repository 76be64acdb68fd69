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
    """Documents with drawings, whose unit is `options.side`; the scenes before and after stand in their meta."""
    chosen = shapes.parse_path("edits", shard.path, options)
    for index in range(shard.begin, shard.end or chosen.count):
        scene, caption = chosen.example(index)
        rng = np.random.default_rng([chosen.seed, index, 2])  # the caption was made from [seed, index, 1]
        edit = edits.choose_edit(scene, rng)
        request = edits.describe_edit(edit, scene, rng)
        before, after = (scenes.render(s, options.side) for s in (scene, edit.after))
        segments: tuple[RawText | RawImage, ...] = (
            RawText(caption),
            RawImage(before),
            RawText(request),
            RawImage(after),
        )
        if index % 2:
            segments = (RawImage(before, loss=False), RawText(request, loss=False), RawImage(after))
        done = {**asdict(edit), "after": scenes.to_graph(edit.after)}
        meta = {"seed": chosen.seed, "index": index, "before": scenes.to_graph(scene), "edit": done}
        yield RawDocument(str(index), segments, meta)


FORMAT = Format(shards, read, options=("shard_size",), is_set=True)
