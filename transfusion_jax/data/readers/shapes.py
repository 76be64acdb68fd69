"""Captioned scenes of coloured shapes, as many as are asked for, from a seed alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RawImage, RawText
from transfusion_jax.errors import whole_number
from transfusion_jax.worlds.shapes import captions, scenes

COUNT = 20_000


def shards(path: str, options: ReadOptions) -> list[InputShard]:
    """Ranges of the scenes; `path` is empty, or their number, with a seed and an arrangement, as `20000:7:corners`.

    Raises:
        ConfigError: the path says something else.
    """
    return ranges("shapes", path, options)


def read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    """A caption, then its drawing at `options.image_size`; the exact scene stands in the document's meta."""
    count, seed, arrangement = parse_name("shapes", shard.path)
    for index in range(shard.begin, shard.end or count):
        scene, caption = example(seed, index, arrangement)
        segments = (RawText(caption), RawImage(scenes.render(scene, options.image_size)))
        yield RawDocument(str(index), segments, {"seed": seed, "index": index, **asdict(scene)})


def example(seed: int, index: int, arrangement: str = scenes.FREE) -> tuple[scenes.Scene, str]:
    """One of a seed's scenes, and its caption."""
    scene = scenes.scene(seed, index, arrangement)
    rng = np.random.default_rng([seed, index, 1])  # the scene was made from [seed, index]
    return scene, captions.describe_claims(captions.claims(scene, rng), rng)


def ranges(name: str, path: str, options: ReadOptions) -> list[InputShard]:
    """Ranges of a set of this name that is made of a number and a seed."""
    count, step = parse_name(name, path)[0], options.shard_size
    return [InputShard(path, begin, min(begin + step, count)) for begin in range(0, count, step)]


def parse_name(name: str, path: str) -> tuple[int, int, str]:
    """Number, seed and arrangement that `20000:7:corners`, `20000:7`, `20000` or nothing stands for.

    Raises:
        ConfigError: the path says something else.
    """
    found = re.fullmatch(rf"(?:([1-9]\d*)(?::(\d+)(?::({'|'.join(scenes.ARRANGEMENTS)}))?)?)?", path)
    count, seed, arrangement = found.groups() if found else ("", "", "")
    numbers = whole_number(count or str(COUNT)), whole_number(seed or "0")
    if found is None or None in numbers:
        raise ConfigError(
            f"{name}:{path} should be a number of scenes, with or without a seed, as {name}:20000:7, and "
            f"an arrangement, {' or '.join(scenes.ARRANGEMENTS)}, after it"
        )
    return *numbers, arrangement or scenes.FREE  # type: ignore[return-value]


FORMAT = Format(shards, read, options=("shard_size",), is_set=True)
