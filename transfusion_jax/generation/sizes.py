"""Sizes of images in pixels and in patches: what a person asks for, what a model draws, what a file becomes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from transfusion_jax.config import Config, ConfigError, require
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.readers import pictures
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.errors import whole_range

NEAREST = 3  # sizes that are named in place of one that the model does not draw


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of a text such as `320x192`.

    Raises:
        ConfigError: it says no size.
    """
    return _parse(text, "x", "a size is WIDTHxHEIGHT in pixels, such as 320x192")


def parse_aspect(text: str) -> tuple[int, int]:
    """The two numbers of a proportion such as `16:9`, width to height.

    Raises:
        ConfigError: it says none.
    """
    return _parse(text, ":", "an aspect is WIDTH:HEIGHT in whole numbers, such as 16:9")


def _parse(text: str, between: str, form: str) -> tuple[int, int]:
    found = whole_range(text, between)
    if found is None or 0 in found:
        raise ConfigError(f"{form}, not {text!r}")
    return found


def grid_of_size(width: int, height: int, config: Config, codec: Codec) -> tuple[int, int]:
    """Rows and columns of patches of an image of this size in pixels.

    Raises:
        ConfigError: the model draws no image of this size; its nearest ones are named.
    """
    multiple = _multiple(config, codec)
    sizes = {(columns * multiple, rows * multiple): (rows, columns) for rows, columns in _grids(config)}
    if (width, height) in sizes:
        return sizes[width, height]
    if not config.model.max_side:
        raise ConfigError(_one_size(config, codec, f"{width}x{height}"))
    to = drawn_sizes(config, codec)
    nearest = sorted(sizes, key=lambda size: abs(math.log(size[0] / width)) + abs(math.log(size[1] / height)))
    raise ConfigError(
        f"this model draws no images of {width}x{height} pixels: sides are multiples of {to.multiple}, at most "
        f"{to.longest}, and an image has at most {to.area:,} pixels; nearest: "
        + ", ".join(f"{w}x{h}" for w, h in nearest[:NEAREST])
    )


def grid_of_aspect(width: int, height: int, config: Config, codec: Codec) -> tuple[int, int]:
    """Rows and columns of patches of the image that comes nearest to this proportion, at the model's full area.

    The rule is that of photographs, `Proportions.size`: one percent of the picture that would be cropped counts as
    much as one percent of the resolution. A proportion between two patches is thus not met exactly.

    Raises:
        ConfigError: it is too wide or too tall for the model, or the model draws one size that has another.
    """
    asked, (rows, columns) = f"{width}:{height}", config.model.patch_grid
    if not config.model.max_side:
        _check_draws(config)
        require(width * rows == height * columns, _one_size(config, codec, asked))
        return rows, columns
    grids = _grids(config)
    longest = max(across for _, across in grids)
    require(
        max(width, height) <= longest * min(width, height),
        f"this model draws no images of {asked}: the longer side is at most {longest} times the shorter one",
    )
    to = drawn_sizes(config, codec, enlarge=True)
    wide, high = to.size(width, height)
    return high // to.multiple, wide // to.multiple


def pixels_of_grid(grid: tuple[int, int], config: Config, codec: Codec) -> tuple[int, int]:
    """Height and width in pixels of an image with these rows and columns of patches."""
    side = _multiple(config, codec)
    return grid[0] * side, grid[1] * side


def untrained_shape(
    grid: tuple[int, int], config: Config, codec: Codec, trained: Mapping[str, Sequence[int]] | None
) -> str | None:
    """A warning where an image of this grid is larger or smaller than all that the run was trained on.

    Args:
        grid: rows and columns of patches.
        config: the run's.
        codec: the run's.
        trained: the least and the greatest `height`, `width` and `area` of the training images in latent pixels;
            None: not known, or all are of one size.
    """
    k = config.model.patch_size
    height, width = (side * k for side in grid)
    found = {"width": width, "height": height, "area": height * width}
    if trained is None or all(trained[name][0] <= value <= trained[name][1] for name, value in found.items()):
        return None
    factor = _multiple(config, codec) // k
    ranges = {name: [bound * factor ** (2 if name == "area" else 1) for bound in trained[name]] for name in found}
    return (
        f"this run was trained on no images of {width * factor}x{height * factor} pixels: theirs are "
        f"{_range(ranges['width'])} wide, {_range(ranges['height'])} high, and {_range(ranges['area'])} in area"
    )


def pixels_of_file(file: bytes, config: Config, codec: Codec) -> Float[np.ndarray, "H W C"]:
    """An image's file as the autoencoder wants it, `[H, W, channels]` in [−1, 1].

    Of a model of images of any shape it keeps its proportions as `transfusion prepare --aspect native` does: it is
    scaled down to the model's area and longest side, and what juts out is cropped. It is enlarged only where it is
    below one patch. Another model gets its middle in the model's own size.

    Raises:
        PictureError: it is no image, damaged or too large.
    """
    height, width, channels = codec.autoencoder.image_shape(config.model.latent_shape)
    size = drawn_sizes(config, codec) if config.model.max_side else (width, height)
    return pictures.decode(file, size, channels).astype(np.float32) / 127.5 - 1


def drawn_sizes(config: Config, codec: Codec, enlarge: bool = False) -> Proportions:
    """How large images are, in pixels, that a model sees and draws."""
    model, multiple = config.model, _multiple(config, codec)
    height, width = pixels_of_grid(model.patch_grid, config, codec)
    longest = (model.max_side or max(model.latent_shape[:2])) // model.patch_size * multiple
    return Proportions(height * width, multiple, enlarge, math.inf, longest, refuse_small=False)


def _multiple(config: Config, codec: Codec) -> int:
    """Pixels of a patch's side."""
    k, channels = config.model.patch_size, config.model.latent_shape[2]
    return codec.autoencoder.image_shape((k, k, channels))[0]


def _grids(config: Config) -> list[tuple[int, int]]:
    """Rows and columns of every image that the model draws."""
    _check_draws(config)
    model = config.model
    if not model.max_side:
        return [model.patch_grid]
    sides = range(1, min(model.max_side // model.patch_size, model.patches) + 1)
    return [(rows, columns) for rows, columns in itertools.product(sides, sides) if rows * columns <= model.patches]


def _check_draws(config: Config) -> None:
    require(config.model.images != "none", "this is a model of text alone: it draws no images")


def _one_size(config: Config, codec: Codec, asked: str) -> str:
    height, width = pixels_of_grid(config.model.patch_grid, config, codec)
    return (
        f"this model draws images of {width}x{height} pixels alone, not of {asked}: ask for that, or leave it out"
    )


def _range(bounds: Sequence[int]) -> str:
    low, high = bounds
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
