"""Captioned scenes of coloured shapes, as many as are asked for, from a seed alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RawImage, RawText
from transfusion_jax.errors import require, whole_number, whole_range
from transfusion_jax.worlds.shapes import captions, scenes

COUNT = 20_000


@dataclass(frozen=True)
class SceneSet:
    """What an input's path stands for: so many scenes of a seed, and the proportions of their pictures."""

    count: int = COUNT
    seed: int = 0
    arrangement: str = scenes.FREE
    sides: tuple[tuple[float, float], ...] = ()  # width and height of pictures, in units; (): all are square

    def example(self, index: int) -> tuple[scenes.Scene, str]:
        """One of the scenes, and its caption; where proportions are named, half of the captions tell them."""
        rng = np.random.default_rng([self.seed, index, 1])  # a scene is made from [seed, index]
        width, height = scenes.pick(rng, self.sides) if self.sides else (1.0, 1.0)
        scene = scenes.scene(self.seed, index, self.arrangement, width, height)
        return scene, captions.describe_claims(captions.claims(scene, rng, bool(self.sides)), rng)


def shards(path: str, options: ReadOptions) -> list[InputShard]:
    """Ranges of the scenes.

    `path` is empty, or their number, with a seed, an arrangement, and proportions of the pictures, width by height,
    as `20000:7:corners:1x1+2x1`. A picture of named proportions is the largest that has them exactly; without any,
    all are squares.

    Raises:
        ConfigError: the path says something else, or no picture of `options` has these proportions.
    """
    return ranges("shapes", path, options)


def read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    """A caption, then its drawing, whose unit is `options.side`; the exact scene stands in the document's meta."""
    chosen = parse_path("shapes", shard.path, options)
    for index in range(shard.begin, shard.end or chosen.count):
        scene, caption = chosen.example(index)
        segments = (RawText(caption), RawImage(scenes.render(scene, options.side)))
        yield RawDocument(str(index), segments, {"seed": chosen.seed, "index": index, **scenes.to_graph(scene)})


def ranges(name: str, path: str, options: ReadOptions) -> list[InputShard]:
    """Ranges of a set of this name that is made of a number and a seed."""
    count, step = parse_path(name, path, options).count, options.shard_size
    return [InputShard(path, begin, min(begin + step, count)) for begin in range(0, count, step)]


def parse_path(name: str, path: str, options: ReadOptions) -> SceneSet:
    """The scenes that `20000:7:corners:1x1+2x1`, a part of it from the left, or nothing stands for.

    Raises:
        ConfigError: the path says something else, or no picture of `options` has these proportions.
    """
    arrangements, proportion = "|".join(scenes.ARRANGEMENTS), r"\d+x\d+"
    shape = rf"(?:([1-9]\d*)(?::(\d+)(?::({arrangements})(?::({proportion}(?:\+{proportion})*))?)?)?)?"
    found = re.fullmatch(shape, path)
    count, seed, arrangement, proportions = found.groups() if found else ("", "", "", "")
    numbers = whole_number(count or str(COUNT)), whole_number(seed or "0")
    if found is None or None in numbers:
        raise ConfigError(
            f"{name}:{path} should be a number of scenes, with or without a seed, as {name}:20000:7, and "
            f"an arrangement, {' or '.join(scenes.ARRANGEMENTS)}, after it, and proportions, as 1x1+2x1"
        )
    arrangement = arrangement or scenes.FREE
    asked = proportions.split("+") if proportions else []
    if asked and options.native is None:
        raise ConfigError(f"{name}:{path} names proportions, and --aspect square has none: give --aspect native")
    sides = tuple(sides_of(text, arrangement, options.native) for text in asked if options.native)
    return SceneSet(*numbers, arrangement, sides)  # type: ignore[arg-type]


def sides_of(proportion: str, arrangement: str, sizes: Proportions) -> tuple[float, float]:
    """Width and height in units of the largest picture of a proportion such as `2x1`; `sizes.square` is the unit.

    Raises:
        ConfigError: there is none, or a scene has no room in it.
    """
    require(not sizes.enlarge, f"pictures of {proportion} are drawn at their size: leave out --enlarge")
    width, height = sizes.exact(*whole_range(proportion, "x") or (0, 0))
    least = scenes.least_side(arrangement) * sizes.square
    require(
        min(width, height) >= least,
        f"pictures of {proportion} are {width}×{height} pixels, and scenes ({arrangement}) take sides of at least "
        f"{least:.0f}: give a larger --area, or proportions nearer to a square",
    )
    return width / sizes.square, height / sizes.square


FORMAT = Format(shards, read, options=("shard_size",), is_set=True)
